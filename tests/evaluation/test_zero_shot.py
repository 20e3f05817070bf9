from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.classes import ClassificationSet
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import UserError
from fastvtp.evaluation.zero_shot import (
    TEMPLATES,
    class_embeddings,
    evaluate_zero_shot,
    evaluate_zero_shot_choice,
    read_templates,
)
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig
from fastvtp.systems.videoprism.video_text import VideoTextPrismConfig
from tests.evaluation.stubs import batches, question_set

NAMES = ("cat", "dog", "fish")


class WordModel(nn.Module):
    """Knows clips by their pixel and texts by the words in them: an axis for each word of `words`."""

    def __init__(self, tokenizer, words, clips):
        super().__init__()
        self.tokenizer, self.words = tokenizer, words
        self.clips = normalize(torch.tensor(clips, dtype=torch.float32), dim=-1)
        self.seen = []

    def encode_video(self, video):
        return self.clips[video[:, 0, 0, 0, 0].long()]

    def encode_text(self, input_ids, cu_seqlens, max_seqlen):
        texts = [self.tokenizer.decode(ids.numpy()) for ids in input_ids.split(cu_seqlens.diff().tolist())]
        assert max_seqlen == cu_seqlens.diff().max()
        self.seen += texts
        rows = [[float(word in text.split()) for word in self.words] for text in texts]
        return normalize(torch.tensor(rows) + 1e-3, dim=-1)


def make(clips, words=(*NAMES, "photo", "not")):
    tokenizer = CaptionTokenizer.train(["a photo of the cat dog fish", "not a video of what is it ?"], 200)
    return WordModel(tokenizer, words, clips), tokenizer


def classes(labels):
    records = tuple(VideoRecord(str(i), f"/{i}.mp4", (NAMES[label],)) for i, label in enumerate(labels))
    return ClassificationSet(records, tuple(labels), NAMES)


def test_the_class_of_the_nearest_prompt():
    model, tokenizer = make([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]])
    known = classes([0, 2, 1])
    report = evaluate_zero_shot(
        model, batches(known.records, [0, 1, 2], 2, tokenizer), known, tokenizer,
        templates=("a video of the {}", "a photo of the {}"), max_length=16, device="cpu", progress=False,
    )  # fmt: skip
    assert report.per_class == {"cat": 100, "dog": 0, "fish": 100}
    assert model.seen[:2] == ["a video of the cat", "a photo of the cat"]
    assert len(model.seen) == 6


def test_an_ensemble_is_the_mean_of_unit_vectors_at_unit_length():
    model, tokenizer = make([[1, 0, 0, 0, 0]])
    arguments = {"max_length": 16, "device": "cpu"}
    both = class_embeddings(model, tokenizer, NAMES, ("{} photo not", "{}"), **arguments)
    first, second = (class_embeddings(model, tokenizer, NAMES, (form,), **arguments) for form in ("{} photo not", "{}"))
    torch.testing.assert_close(both, normalize((first + second) / 2, dim=-1))
    torch.testing.assert_close(both.norm(dim=-1), torch.ones(3))


def test_multiple_choice_by_the_nearest_option():
    model, tokenizer = make([[0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 1]])
    questions = question_set(
        ("what is it ?", "dog", "", ("cat", "dog")),
        ("what is it ?", "fish", "", ("fish", "cat", "dog")),
        ("not ?", "not a cat", "", ("a cat", "not a cat")),
    )
    options = {"max_length": 16, "device": "cpu", "progress": False}
    report = evaluate_zero_shot_choice(
        model, batches(questions.records, [0, 1, 2], 2, tokenizer), questions, tokenizer, **options
    )
    assert report.accuracy == pytest.approx(200 / 3)
    assert report.chance == pytest.approx(100 * (1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert model.seen[:2] == ["cat", "dog"]
    model.seen.clear()
    evaluate_zero_shot_choice(
        model,
        batches(questions.records, [2], 2, tokenizer),
        questions,
        tokenizer,
        form="{question} {option}",
        **options,
    )
    assert model.seen == ["not? a cat", "not? not a cat"]


SIZES = {"image_size": 16, "num_frames": 2, "width": 16, "depth": 1, "num_heads": 2, "max_text_length": 12}
KINDS = {
    "dual": lambda words: DualEncoderConfig(**SIZES, **words, tubelet=(2, 8, 8), pad_token_id=0),
    "prism": lambda words: VideoTextPrismConfig(
        **SIZES, **words, patch_size=8, mlp_hidden=32, temporal_depth=1, text_depth=1, auxiliary_depth=1
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_two_towers_classifies(kind):
    torch.manual_seed(0)
    tokenizer = CaptionTokenizer.train(NAMES, 60)
    model = build_model(KINDS[kind]({"vocab_size": tokenizer.vocab_size}))
    known = classes([0, 1])
    video = torch.randint(0, 256, (2, 2, 16, 16, 3), dtype=torch.uint8)
    batch = SimpleNamespace(video=video, sample_ids=torch.tensor([0, 1]), captions=["cat", "dog"])
    arguments = {"templates": TEMPLATES["kinetics"], "max_length": 12, "device": "cpu"}
    report = evaluate_zero_shot(model, [batch], known, tokenizer, progress=False, **arguments)
    with torch.no_grad():
        similarity = model.encode_video(video) @ class_embeddings(model, tokenizer, NAMES, **arguments).T
    assert report.top["top1"] == 50 * (similarity.argmax(-1) == torch.tensor([0, 1])).sum()
    assert model.training  # as it was


def test_templates(tmp_path):
    assert len(TEMPLATES["kinetics"]) == len(set(TEMPLATES["kinetics"])) == 28
    assert TEMPLATES["kinetics"][:3] == ("a photo of {}.", "a photo of a person {}.", "a photo of a person using {}.")
    assert read_templates("video") == ("a video of {}.",)
    path = tmp_path / "mine.txt"
    path.write_text("clip of {}\n\n {} again \n")
    assert read_templates(str(path)) == ("clip of {}", "{} again")
    path.write_text("clip of {}\nno place\n")
    with pytest.raises(UserError, match=r"mine.txt: expected \{\} once for the class, got 'no place'"):
        read_templates(str(path))
    with pytest.raises(UserError, match="templates 'vido' are neither a file nor one of video, kinetics"):
        read_templates("vido")


def test_faults_are_one_line():
    model, tokenizer = make([[1, 0, 0, 0, 0]])
    known = classes([0])
    options = {"max_length": 16, "device": "cpu", "progress": False}
    bare = ClassificationSet(known.records, (0,), ("0", "1"))
    with pytest.raises(UserError, match="classes are bare numbers"):
        evaluate_zero_shot(model, [], bare, tokenizer, templates=("{}",), **options)
    with pytest.raises(UserError, match="templates: no template"):
        evaluate_zero_shot(model, [], known, tokenizer, templates=(), **options)
    with pytest.raises(UserError, match="temperature must be positive, got 0"):
        evaluate_zero_shot(model, [], known, tokenizer, templates=("{}",), temperature=0, **options)
    questions = question_set(("what?", "cat", "", ()))
    with pytest.raises(UserError, match=r"question 'what\?' of /0.mp4 has no options"):
        evaluate_zero_shot_choice(model, batches(questions.records, [0], 1), questions, tokenizer, **options)
    with pytest.raises(UserError, match=r"form must hold \{option\}, got '\{question\}'"):
        evaluate_zero_shot_choice(model, [], questions, tokenizer, form="{question}", **options)
