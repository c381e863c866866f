"""What lmms-eval reads when it looks for models. lmms-eval is imported only when it asks."""

from typing import Any


def manifest() -> Any:
    """Both classes: tasks of chat messages, which is lmms-eval's default, and with --force_simple all others."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        "victor_jax",
        simple_class_path="victor_jax.harness.models.VictorJax",
        chat_class_path="victor_jax.harness.models.VictorJaxChat",
    )
