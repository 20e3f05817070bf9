"""VideoPrism's texts: canonical form, unigrams, truncation; the released vocabulary where its file is given."""

import os
import sys

import numpy as np
import pytest

from fastvtp.data.sentencepiece import SentencePieceTokenizer, canonical
from fastvtp.data.text import ABSENT_ID, Tokenizer
from fastvtp.data.tokenizers import load_tokenizer
from fastvtp.errors import UserError

TEXTS = ["a video of playing drums.", "a video of sitting.", "it s a concert.", "a dog plays the drums, twice."]
# entry -> score; the best sum of scores wins
PIECES = {
    **{"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0},
    **{"▁a": -1.0, "▁video": -2.0, "▁of": -1.5, "▁": -3.0, ".": -1.0, "▁drum": -3.0, "s": -2.0, "▁drums": -4.5},
    **{"ing": -2.0, "▁play": -2.5, "▁b": -2.0, "b": -4.0, "▁it": -2.0, "▁s": -2.5, "t": -5.0},
}
RELEASED = os.environ.get("FASTVTP_VIDEOPRISM_VOCABULARY")


def unigram(extra: int = 0):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = [*PIECES.items(), *((f"<extra_id_{i}>", 0.0) for i in reversed(range(extra)))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    # as T5's, whose end VideoPrism does not have
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    unigram().save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it's A-B", "it s a b."),
        ("a video of playing drums.", "a video of playing drums."),
        ("  Tabs\tand\nlines  ", "tabs and lines."),
        ("(What?!) _so_ [it] goes: 3.5 @ 2#1", "what so it goes 3 5 2 1."),
        ("Ünïcode – “quoted”", "ünïcode – “quoted”."),
        ("", "."),
        ("...", "."),
    ],
)
def test_canonical(text, expected):
    assert canonical(text) == expected
    assert canonical(expected) == expected


def test_ids(tokenizer):
    assert isinstance(tokenizer, SentencePieceTokenizer)
    (ids,) = tokenizer.encode(["A video, of DRUMS!"], 64)
    assert ids.dtype == np.int64
    assert tokenizer.tokens(ids) == ["▁a", "▁video", "▁of", "▁drums", "."]
    assert ids.tolist() == [3, 4, 5, 10, 7]  # neither a beginning nor an end
    assert tokenizer.decode(ids) == "a video of drums."
    unknown = tokenizer.encode(["a q"], 64)[0]
    assert tokenizer.unk_id in unknown
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.vocab_size) == (0, 2, len(PIECES))
    assert tokenizer.special_ids == (0, 1, 2)
    assert tokenizer.mask_id == ABSENT_ID
    assert tokenizer.model_settings == {
        "vocab_size": len(PIECES),
        "pad_token_id": 0,
        "mask_token_id": -1,
        "special_token_ids": (0, 1, 2),
    }


def test_truncation(tokenizer):
    long = " ".join(["video"] * 80)
    whole, cut = (tokenizer.encode([long], length)[0] for length in (100, 64))
    assert len(whole) == 81
    assert cut.tolist() == whole[:64].tolist()
    packed = tokenizer.encode_packed(["a b", "", long], 3)
    assert packed.lengths == (3, 2, 3)
    assert packed.input_ids.tolist() == [3, 13, 7, 6, 7, 4, 4, 4]
    with pytest.raises(UserError, match="max_length must be at least 1, got 0"):
        tokenizer.encode(["a"], 0)


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "again.json")
    again = load_tokenizer(tmp_path / "again.json")
    assert [ids.tolist() for ids in again.encode(TEXTS, 64)] == [ids.tolist() for ids in tokenizer.encode(TEXTS, 64)]


def test_entries_that_transformers_appends_are_not_counted(tmp_path):
    unigram(extra=5).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).vocab_size == len(PIECES)


def test_another_vocabulary_is_one_line(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.Unigram([("a", 0.0), ("<unk>", 0.0)], unk_id=1)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"expected <pad> as entry 0 and <unk>, entries begin with a, <unk>"):
        load_tokenizer(tmp_path)


def trained(path) -> None:
    """A SentencePiece model of the form of the released one."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (path.parent / "corpus.txt").write_text("\n".join(map(canonical, TEXTS)) + "\n")
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    files = {"input": str(path.parent / "corpus.txt"), "model_prefix": str(path.with_suffix(""))}
    sentencepiece.SentencePieceTrainer.train(vocab_size=40, hard_vocab_limit=False, minloglevel=2, **files, **ids)


def test_sentencepiece(tmp_path):
    trained(tmp_path / "spiece.model")
    tokenizer = load_tokenizer(tmp_path / "spiece.model")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    (ids,) = tokenizer.encode(["A video of DRUMS"], 64)
    assert tokenizer.decode(ids) == "a video of drums."
    assert not set(ids.tolist()) & {0, 1, 2}
    folder = tmp_path / "run"
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")  # as runs call it
    assert [file.name for file in folder.iterdir()] == ["tokenizer.model"]
    again = load_tokenizer(folder)
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode(TEXTS, 9)[3].tolist() == tokenizer.encode(TEXTS, 9)[3].tolist()
    (tmp_path / "spiece.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path / "spiece.model")


def test_without_sentencepiece_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"needs SentencePiece: pip install 'fastvtp\[videoprism\]'"):
        load_tokenizer(tmp_path / "spiece.model")
    with pytest.raises(FileNotFoundError, match="no such tokenizer file"):
        load_tokenizer(tmp_path / "absent.model")


@pytest.mark.skipif(
    RELEASED is None, reason="FASTVTP_VIDEOPRISM_VOCABULARY names no vocabulary (.model, tokenizer.json)"
)
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a video of playing drums.", [262, 266, 768, 267, 1376, 14293, 259]),
        ("A video of sitting", [262, 266, 768, 267, 2865, 259]),
        ("a video of concert.", [262, 266, 768, 267, 4605, 259]),
    ],
)
def test_released_ids(text, ids):
    tokenizer = load_tokenizer(RELEASED or "")
    assert tokenizer.vocab_size == 32000
    assert tokenizer.encode([text], 64)[0].tolist() == ids
