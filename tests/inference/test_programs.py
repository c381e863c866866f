"""The compiled loop of new tokens does no work for nobody."""

import numpy as np
import pytest
import talking

import victor_jax
from victor_jax.inference import programs
from victor_jax.models.language import EMPTY, StageCache

ROOM = 12


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = talking.saved(tmp_path_factory.mktemp("talk") / "m", "victor:registers=3,layer=2")
    return victor_jax.load(folder, dtype="float32")


def decoded(vlm, end_tokens):
    """Tokens of two rows and the caches that are left."""
    rows = vlm.prompter.ask(["What is in the picture?", "How many?"], [talking.picture(0), talking.picture(1)])
    logits, caches = vlm.call(programs.prefill, *vlm.prepare(rows), room=ROOM)
    return programs.decode(
        vlm._tree,
        caches,
        logits,
        None,
        None,
        module=vlm.module,
        max_new_tokens=ROOM,
        end_tokens=end_tokens,
        pad_token=0,
    )


def turns(caches):
    """New tokens that went through the layers of each stage."""
    return [
        int((cache.positions[:, cache.prefilled :] != EMPTY).any(axis=0).sum())
        for cache in caches
        if isinstance(cache, StageCache)
    ]


def test_decoding_stops_when_every_row_has_ended(vlm):
    tokens, caches = decoded(vlm, end_tokens=())
    said = np.asarray(tokens).tolist()
    assert turns(caches) == [ROOM - 1] * 2, "the last token is not read"
    ends = said[0][2], said[1][4]
    lengths = [min(row.index(end) for end in ends if end in row) + 1 for row in said]
    assert max(lengths) < ROOM - 1
    tokens, caches = decoded(vlm, ends)
    assert turns(caches) == [max(lengths) - 1] * 2
    for row, length in enumerate(lengths):
        assert tokens[row].tolist() == said[row][:length] + [0] * (ROOM - length)
