from tokenizers_tiny import sentencepiece_tokenizer

from victor_jax.data.show import marked_text


def test_the_text_is_whole_with_its_spaces_and_what_is_supervised_is_marked():
    tokenizer = sentencepiece_tokenizer(legacy=False)
    ids = tokenizer("A red bus. Is it?", add_special_tokens=False).input_ids
    middle = len(tokenizer("A red", add_special_tokens=False).input_ids)
    supervised = [number >= middle for number in range(len(ids))]
    assert marked_text(ids, supervised, tokenizer) == "A red[[ bus. Is it?]]"
    shown = marked_text(["<image>", *ids, "<2 images>"], [False, *supervised, False], tokenizer, ("«", "»"))
    assert shown == "<image>A red« bus. Is it?»<2 images>"
