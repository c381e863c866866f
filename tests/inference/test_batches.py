"""What a batch may hold, and what a second call costs."""

import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the tiny models are built by Hugging Face on torch")

import tiny  # noqa: E402

import victor_jax  # noqa: E402
from victor_jax.inference.buckets import room_for  # noqa: E402
from victor_jax.models.sequence import EncodedRow  # noqa: E402

CONFIG = tiny.config("llama_gqa")
# Text lengths around the images of each row: 0 to 3 images, text first or last, 2 to 25 tokens of text.
ROWS = [[5, 7], [2], [4, 3, 6], [0, 9], [25], [3, 0, 0, 8], [11, 0], [1, 8]]
ANSWERED = [1, 3, 5]  # rows whose answers are compared too; each costs two compiles alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("model"), "llama_gqa")


@pytest.fixture(scope="module", params=["full", "victor:registers=4,layer=2", "vtw:layer=1,positions=renumber"])
def vlm(request, folder):
    return victor_jax.load(folder, request.param, dtype="float32", seed=0)


def padded(rows, side):
    longest = max(row.shape[1] for row in rows)
    ids, mask = np.zeros((2, len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        where = slice(0, row.shape[1]) if side == "right" else slice(longest - row.shape[1], None)
        ids[i, where], mask[i, where] = row[0], 1
    return ids, mask


@pytest.fixture(scope="module")
def rows():
    return [tiny.prompt(CONFIG, parts, seed) for seed, parts in enumerate(ROWS)]


@pytest.fixture(scope="module")
def pixels():
    return [tiny.pixels(CONFIG, len(parts) - 1, seed) for seed, parts in enumerate(ROWS)]


def test_a_batch_gives_each_row_its_own_result(vlm, rows, pixels):
    single = [vlm.logits(row, image if len(image) else None) for row, image in zip(rows, pixels, strict=True)]
    tokens = [vlm.generate_ids(rows[i], pixels[i] if len(pixels[i]) else None, max_new_tokens=8) for i in ANSWERED]
    for side in ("right", "left"):
        ids, mask = padded(rows, side)
        together = vlm.logits(ids, np.concatenate(pixels), mask)
        assert together.shape[1] == max(sum(parts) for parts in ROWS)
        for row, alone in enumerate(single):
            length = alone.shape[1]
            np.testing.assert_allclose(together[row, :length], alone[0], atol=1e-5, rtol=0)
            assert not together[row, length:].any(), "past its text a row holds zeros"
        new = vlm.generate_ids(ids, np.concatenate(pixels), mask, max_new_tokens=8)
        np.testing.assert_array_equal(new[ANSWERED], np.concatenate(tokens))


def test_a_second_call_of_the_same_shapes_compiles_nothing(vlm, caplog):
    prompts = [tiny.prompt(CONFIG, [5, 7], seed) for seed in (1, 2)]
    images = [tiny.pixels(CONFIG, 1, seed) for seed in (1, 2)]
    vlm.logits(prompts[0], images[0])
    vlm.generate_ids(prompts[0], images[0], max_new_tokens=8)
    import jax

    jax.config.update("jax_log_compiles", True)
    try:
        with caplog.at_level(logging.WARNING):
            vlm.logits(prompts[1], images[1])
            vlm.generate_ids(prompts[1], images[1], max_new_tokens=8)
    finally:
        jax.config.update("jax_log_compiles", False)
    compiled = [record.getMessage() for record in caplog.records if "ompil" in record.getMessage()]
    assert compiled == []


def test_rows_end_at_their_end_token_and_are_padded(tmp_path):
    """The end token of the first row is chosen as what it says third, so that rows end at different steps."""
    net = tiny.model(CONFIG)
    net.save_pretrained(tmp_path / "model")
    ids = np.concatenate([tiny.prompt(CONFIG, [12], seed) for seed in range(4)])
    free = victor_jax.load(tmp_path / "model", dtype="float32").generate_ids(ids, max_new_tokens=12)
    end = int(free[0, 2])
    net.generation_config.eos_token_id = end
    net.config.text_config.eos_token_id = end
    net.save_pretrained(tmp_path / "ending")
    ended = victor_jax.load(tmp_path / "ending", dtype="float32")
    assert ended.config.end_tokens == (end,)
    new = ended.generate_ids(ids, max_new_tokens=12)
    for row in range(4):
        said = free[row].tolist()
        length = said.index(end) + 1 if end in said else 12
        assert new[row].tolist() == said[:length] + [ended.config.pad_token] * (12 - length)


def test_bfloat16_stays_near_float32(folder):
    ids, pixels = tiny.prompt(CONFIG, [5, 7]), tiny.pixels(CONFIG, 1)
    exact = victor_jax.load(folder, dtype="float32").logits(ids, pixels)
    vlm = victor_jax.load(folder)
    assert {leaf.dtype.name for leaf in vlm.params.values()} == {"bfloat16"}
    rough = vlm.logits(ids, pixels)
    assert rough.dtype == np.float32
    # Eight bits of mantissa through some sixty roundings: about 3 % of logits of order 1.
    assert np.sqrt(np.mean((rough - exact) ** 2)) < 0.05


def test_prompts_of_many_lengths_share_few_programs():
    """Text is rounded up by a quarter at most."""
    rooms = [room_for([EncodedRow(np.zeros(n, np.int32), np.zeros(n, np.int32))]).text for n in range(1, 513)]
    assert len(set(rooms)) == 20
    assert all(n <= room <= max(8 * -(-n // 8), 1.25 * n) for n, room in enumerate(rooms, 1))
    assert rooms[63] == 64
