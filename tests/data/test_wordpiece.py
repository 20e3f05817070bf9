import os
import subprocess
import sys

import numpy as np
import pytest

from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.data.wordpiece import SPECIAL_TOKENS, CaptionTokenizer
from fastvtp.errors import UserError

CAPTIONS = [
    "A red ball moves left over a striped floor.",
    "The blue cube's shadow grows, then vanishes!",
    "Two striped balls orbit a red cube.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return CaptionTokenizer.train(CAPTIONS * 3, vocab_size=200)


def test_captions_are_lower_cased_framed_and_read_back(tokenizer):
    ids = tokenizer.encode([CAPTIONS[2]], max_length=64)[0]
    assert ids.dtype == np.int64
    assert (ids[0], ids[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
    assert tokenizer.unk_id not in ids
    assert tokenizer.decode(ids) == "two striped balls orbit a red cube."
    assert tokenizer.decode(ids, skip_special=False).startswith("[CLS] two")
    assert "".join(tokenizer.tokens(ids)).replace("##", "") == "[CLS]twostripedballsorbitaredcube.[SEP]"


def test_long_captions_lose_their_end_but_keep_the_frame(tokenizer):
    whole, cut = (tokenizer.encode([CAPTIONS[0]], length)[0] for length in (64, 6))
    assert cut.tolist() == [*whole[:5], tokenizer.sep_id]
    with pytest.raises(UserError, match="max_length must be at least 3"):
        tokenizer.encode(CAPTIONS, 2)


def test_packed_captions_lie_one_after_the_other(tokenizer):
    separate = tokenizer.encode(CAPTIONS, 10)
    packed = tokenizer.encode_packed(CAPTIONS, 10)
    assert packed.lengths == tuple(len(ids) for ids in separate)
    assert packed.input_ids.dtype == np.int64
    np.testing.assert_array_equal(packed.input_ids, np.concatenate(separate))
    assert tokenizer.encode_packed([], 10).lengths == ()


def test_pairs_have_berts_form_and_lose_the_end_of_the_first_text(tokenizer):
    first, second = (ids[1:-1].tolist() for ids in tokenizer.encode(["a red ball moves left", "striped floor"], 64))
    assert len(first) > 4 > len(second) > 1

    def pair(max_length):
        packed = tokenizer.encode_pairs(["a red ball moves left"], ["striped floor"], max_length)
        assert packed.lengths == (len(packed.input_ids),)
        return packed.input_ids.tolist()

    def framed(first, second):
        return [tokenizer.cls_id, *first, tokenizer.sep_id, *second, tokenizer.sep_id]

    whole = len(first) + len(second) + 3
    assert pair(64) == pair(whole) == framed(first, second)
    assert pair(whole - 2) == framed(first[:-2], second)
    assert pair(len(second) + 4) == framed(first[:1], second)
    assert pair(5) == framed(first[:1], second[:1])
    with pytest.raises(UserError, match="max_length must be at least 5"):
        pair(4)


def test_pairs_are_packed_one_after_the_other(tokenizer):
    pairs = [("a ball", "red"), ("the cube", "blue cube")]
    packed = tokenizer.encode_pairs(*zip(*pairs, strict=True), 16)
    separate = [tokenizer.encode_pairs([first], [second], 16) for first, second in pairs]
    assert packed.lengths == tuple(one.lengths[0] for one in separate)
    assert packed.input_ids.dtype == np.int64
    np.testing.assert_array_equal(packed.input_ids, np.concatenate([one.input_ids for one in separate]))
    assert tokenizer.encode_pairs([], [], 16).lengths == ()
    with pytest.raises(ValueError, match="zip"):
        tokenizer.encode_pairs(["a ball"], [], 16)


def test_unknown_characters_become_the_unknown_token_and_masks_are_understood(tokenizer):
    assert tokenizer.encode(["a 猫 ball"], 10)[0].tolist().count(tokenizer.unk_id) == 1
    assert tokenizer.mask_id in tokenizer.encode(["a [MASK] ball"], 10)[0]


def test_special_ids_are_distinct_and_inside_the_vocabulary(tokenizer):
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert tokenizer.vocab_size <= 200
    assert max(tokenizer.encode_packed(CAPTIONS, 64).input_ids) < tokenizer.vocab_size


TRAIN = """
import random, sys
from fastvtp.data.wordpiece import CaptionTokenizer
generator = random.Random(0)
words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(200)]
captions = [" ".join(generator.choices(words, k=8)) for _ in range(100)]
random.shuffle(captions)
CaptionTokenizer.train(captions, 300).save(sys.argv[1])
"""


def test_training_gives_the_same_vocabulary_in_every_process_and_order(tmp_path):
    paths = [tmp_path / f"{run}.json" for run in range(3)]
    for path in paths:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", TRAIN, str(path)], check=True, env=environment)
    assert paths[0].read_text() == paths[1].read_text() == paths[2].read_text()


def test_bad_training_input_is_refused():
    with pytest.raises(UserError, match="vocab_size 10 is too small"):
        CaptionTokenizer.train(CAPTIONS, 10)
    with pytest.raises(UserError, match="without captions"):
        CaptionTokenizer.train([], 100)


@pytest.mark.parametrize("target", ["tokenizer.json", "."])
def test_saved_tokenizers_load_from_file_or_folder(tokenizer, tmp_path, target):
    tokenizer.save(tmp_path / target)
    for source in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(source)
        assert loaded.vocab_size == tokenizer.vocab_size
        np.testing.assert_array_equal(
            loaded.encode_packed(CAPTIONS, 64).input_ids, tokenizer.encode_packed(CAPTIONS, 64).input_ids
        )


def test_bert_vocabularies_load_with_their_own_ids(tmp_path):
    tokens = ["[PAD]", "a", "ball", "##s", "red", ".", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    for source in (tmp_path, tmp_path / "vocab.txt"):
        loaded = load_tokenizer(source)
        assert loaded.encode(["Red BALLS."], 10)[0].tolist() == [7, 4, 2, 3, 5, 8]
        assert loaded.special_ids == (0, 6, 7, 8, 9)
        assert loaded.decode([7, 4, 2, 3, 8]) == "red balls"


@pytest.mark.parametrize("missing", SPECIAL_TOKENS)
def test_a_vocabulary_without_a_special_token_is_refused(tmp_path, missing):
    tokens = [token for token in SPECIAL_TOKENS if token != missing] + ["a"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "vocab.txt"))
    assert f"has no {missing}" in str(caught.value)


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds neither tokenizer\.json nor vocab\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such tokenizer file"):
        load_tokenizer(tmp_path / "missing.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_padding_and_truncation_of_a_foreign_tokenizer_are_switched_off(tokenizer, tmp_path):
    from tokenizers import Tokenizer

    tokenizer.save(tmp_path)
    foreign = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    foreign.enable_padding(length=32)
    foreign.enable_truncation(4)
    foreign.save(str(tmp_path / "tokenizer.json"))
    np.testing.assert_array_equal(
        load_tokenizer(tmp_path).encode(CAPTIONS[:1], 64)[0], tokenizer.encode(CAPTIONS[:1], 64)[0]
    )
