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
    Prompts,
    TextTower,
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


def texts_of(model, tokenizer, max_length=16):
    return TextTower(model, tokenizer, max_length, "cpu")


def classes(labels):
    records = tuple(VideoRecord(str(i), f"/{i}.mp4", (NAMES[label],)) for i, label in enumerate(labels))
    return ClassificationSet(records, tuple(labels), NAMES)


def test_the_class_of_the_nearest_prompt():
    model, tokenizer = make([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]])
    known = classes([0, 2, 1])
    prompts = Prompts(("a video of the {}", "a photo of the {}"))
    loader = batches(known.records, [0, 1, 2], 2, tokenizer)
    report = evaluate_zero_shot(texts_of(model, tokenizer), loader, known, prompts, progress=False)
    assert report.per_class == {"cat": 100, "dog": 0, "fish": 100}
    assert model.seen[:2] == ["a video of the cat", "a photo of the cat"]
    assert len(model.seen) == 6


def test_an_ensemble_is_the_mean_of_unit_vectors_at_unit_length():
    model, tokenizer = make([[1, 0, 0, 0, 0]])
    texts, forms = texts_of(model, tokenizer), ("{} photo not", "{}")
    both = class_embeddings(texts, NAMES, forms)
    first, second = (class_embeddings(texts, NAMES, (form,)) for form in forms)
    torch.testing.assert_close(both, normalize((first + second) / 2, dim=-1))
    torch.testing.assert_close(both.norm(dim=-1), torch.ones(3))


def test_multiple_choice_by_the_nearest_option():
    model, tokenizer = make([[0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 1]])
    questions = question_set(
        ("what is it ?", "dog", "", ("cat", "dog")),
        ("what is it ?", "fish", "", ("fish", "cat", "dog")),
        ("not ?", "not a cat", "", ("a cat", "not a cat")),
    )
    texts = texts_of(model, tokenizer)
    loader = batches(questions.records, [0, 1, 2], 2, tokenizer)
    report = evaluate_zero_shot_choice(texts, loader, questions, Prompts(), progress=False)
    assert report.accuracy == pytest.approx(200 / 3)
    assert report.chance == pytest.approx(100 * (1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert model.seen[:2] == ["cat", "dog"]
    model.seen.clear()
    loader, prompts = batches(questions.records, [2], 2, tokenizer), Prompts(form="{question} {option}")
    evaluate_zero_shot_choice(texts, loader, questions, prompts, progress=False)
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
    texts, prompts = texts_of(model, tokenizer, 12), Prompts(TEMPLATES["kinetics"])
    report = evaluate_zero_shot(texts, [batch], known, prompts, progress=False)
    with torch.no_grad():
        similarity = model.encode_video(video) @ class_embeddings(texts, NAMES, prompts.templates).T
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
    texts = texts_of(model, tokenizer)
    bare = ClassificationSet(known.records, (0,), ("0", "1"))
    with pytest.raises(UserError, match="classes are bare numbers"):
        evaluate_zero_shot(texts, [], bare, Prompts(("{}",)))
    with pytest.raises(UserError, match="templates: no template"):
        evaluate_zero_shot(texts, [], known, Prompts(()))
    with pytest.raises(UserError, match="temperature must be positive, got 0"):
        evaluate_zero_shot(texts, [], known, Prompts(("{}",), temperature=0))
    questions = question_set(("what?", "cat", "", ()))
    with pytest.raises(UserError, match=r"question 'what\?' of /0.mp4 has no options"):
        evaluate_zero_shot_choice(texts, batches(questions.records, [0], 1), questions, Prompts(), progress=False)
    with pytest.raises(UserError, match=r"form must hold \{option\}, got '\{question\}'"):
        evaluate_zero_shot_choice(texts, [], questions, Prompts(form="{question}"))
