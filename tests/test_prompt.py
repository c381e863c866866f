"""What a checkpoint may say of the prompt is what the data code carries out."""

from victor_jax.data.templates import TEMPLATES
from victor_jax.prompt import KNOWN


def test_the_templates_that_a_checkpoint_may_name_are_those_that_exist():
    assert KNOWN["template"] == tuple(TEMPLATES)
