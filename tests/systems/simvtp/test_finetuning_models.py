"""The models that pretrained weights are fine-tuned as: classifier, dual encoder, question answering."""

import numpy as np
import pytest
import torch

from fastvtp.systems.catalogue import build_model
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.plan import CaptionTokens, StepMasks, lay_out
from fastvtp.systems.simvtp.question_answering import VideoQAConfig
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig
from fastvtp.systems.videomae.classifier import VideoClassifierConfig

VIDEO = {
    "image_size": 32,
    "num_frames": 4,
    "tubelet": (2, 8, 8),
    "width": 64,
    "depth": 2,
    "num_heads": 2,
}
TEXT = {"vocab_size": 50, "max_text_length": 12, "text_dropout": 0.0}
LENGTHS = (6, 4, 9)
CU_SEQLENS = torch.tensor([0, 6, 10, 19], dtype=torch.int32)


def make(config):
    torch.manual_seed(0)
    return build_model(config).eval()


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return video, torch.randint(5, 50, (sum(LENGTHS),), generator=generator)


def fit(model, loss_of, steps: int = 25) -> tuple[float, float]:
    """The loss before and after; every parameter must have had a gradient."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=2e-3), []
    for _ in range(steps):
        loss = loss_of()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses[0], losses[-1]


def test_classifier():
    model = make(VideoClassifierConfig(**VIDEO, num_classes=5))
    video, _ = make_batch()
    logits = model(video)
    assert logits.shape == (3, 5)
    assert logits.softmax(-1).sub(0.2).abs().max() < 0.01  # the head begins near zero
    tokens = model.encoder(model.video_embeddings(video).flatten(0, 1), packing_of(3, 32))
    expected = model.norm(tokens.view(3, 32, -1).mean(1))
    torch.testing.assert_close(model.features(video), expected)
    labels = torch.tensor([3, 0, 4])
    first, last = fit(model, lambda: torch.nn.functional.cross_entropy(model(video), labels))
    assert last < 0.5 * first
    assert model(video).argmax(-1).tolist() == [3, 0, 4]


def packing_of(sequences: int, length: int):
    from fastvtp.modules.packing import Packing

    return Packing.uniform(sequences, length)


@pytest.mark.parametrize("pad_text", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_dual_encoder(shared, pad_text):
    model = make(DualEncoderConfig(**VIDEO, **TEXT, shared_encoder=shared, pad_text=pad_text, projection_dim=16))
    video, ids = make_batch()
    output = model(video, ids, CU_SEQLENS, 9)
    # one call for both modalities gives what two give
    torch.testing.assert_close(output.text, model.embed_text(ids, CU_SEQLENS, 9), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.video, model.embed_video(video), rtol=1e-4, atol=1e-5)
    alone = model.embed_text(ids[6:10], torch.tensor([0, 4], dtype=torch.int32), 4)
    assert torch.allclose(alone, output.text[1:2], atol=1e-5) is not pad_text  # padding makes it depend on the batch
    assert (model.text_encoder is None) is shared
    first, last = fit(model, lambda: model(video, ids, CU_SEQLENS, 9, sample_ids=torch.arange(3)).loss)
    assert last < 0.5 * first


def test_padding_asks_and_is_not_asked():
    """What [PAD] holds reaches the mean and nothing else."""
    model = make(DualEncoderConfig(**VIDEO, **TEXT))
    _, ids = make_batch()
    x_ND, packing = model.text_embeddings.embed_texts(ids, CU_SEQLENS, 9)
    before = model.text_encoder(x_ND, packing).view(3, 9, -1)
    x_ND = x_ND.view(3, 9, -1).clone()
    x_ND[0, 6:] += 3.0
    after = model.text_encoder(x_ND.flatten(0, 1), packing).view(3, 9, -1)
    assert torch.equal(before[0, :6], after[0, :6])
    assert torch.equal(before[1:], after[1:])
    assert not torch.allclose(before[0, 6:], after[0, 6:])


@pytest.mark.parametrize("answers", [7, 1])
def test_question_answering(answers):
    """Sequences of clip and text, a clip shared by several texts, against one call per text."""
    model = make(VideoQAConfig(**VIDEO, **TEXT, num_answers=answers))
    video, ids = make_batch()
    clips = [1, 0, 1]
    logits = model(video[:2], model.plan(ids, LENGTHS, clips))
    assert logits.shape == (3, answers)
    for i, (clip, text) in enumerate(zip(clips, ids.split(LENGTHS), strict=True)):
        alone = model(video[clip : clip + 1], model.plan(text, [len(text)], [0]))
        torch.testing.assert_close(alone[0], logits[i], rtol=1e-4, atol=1e-5)
    target = torch.tensor([2, 6, 0])

    def loss():
        found = model(video[:2], model.plan(ids, LENGTHS, clips))
        return torch.nn.functional.cross_entropy(
            found if answers > 1 else found.view(1, 3), target[: len(found)] if answers > 1 else torch.tensor([1])
        )

    first, last = fit(model, loss)
    assert last < 0.5 * first


def test_question_answering_names_bad_input():
    model = make(VideoQAConfig(**VIDEO, **TEXT, num_answers=7))
    _, ids = make_batch()
    with pytest.raises(ValueError, match="each of the 3 texts needs a clip, got 2"):
        model.plan(ids, LENGTHS, [0, 1])
    with pytest.raises(ValueError, match="a text has 19 tokens, the model takes 12"):
        model.plan(ids, [19], [0])
    with pytest.raises(ValueError, match="pad_text must be false"):
        VideoQAConfig(pad_text=True)


def test_question_answering_counts_the_clips():
    """A clip without a text must not shift the rows of the captions behind it."""
    model = make(VideoQAConfig(**VIDEO, **TEXT, num_answers=7))
    video, ids = make_batch()
    told = model(video, model.plan(ids[:10], LENGTHS[:2], [0, 1], num_videos=3))
    torch.testing.assert_close(told, model(video[:2], model.plan(ids[:10], LENGTHS[:2], [0, 1])))
    with pytest.raises(ValueError, match="the plan is for 2 clips, video has 3"):
        model(video, model.plan(ids[:10], LENGTHS[:2], [0, 1]))
    with pytest.raises(ValueError, match="video_of_text names clips 0 to 3 of a batch of 3"):
        model.plan(ids[:10], LENGTHS[:2], [0, 3], num_videos=3)


MASKED = {**VIDEO, **TEXT, "readout": "mask", "mask_token_id": 4}


def test_a_masked_readout_needs_a_token_of_each_text():
    """The [MASK] of an empty one would take the place of another text's last token."""
    model = make(VideoQAConfig(**MASKED, num_answers=7))
    for lengths, empty in (([0, 3], 0), ([3, 0], 1)):
        with pytest.raises(ValueError, match=f"readout 'mask' reads a text's last token: text {empty} has none"):
            model.plan(torch.tensor([2, 9, 3]), lengths, [0, 0])


def test_an_answer_is_read_where_pretraining_reads_a_masked_word():
    """SimVTP shown the whole clip and asked for the last token of the text gives the same logits."""
    pretrained = make(
        SimVTPConfig(
            **VIDEO,
            **TEXT,
            decoder_width=16,
            decoder_num_heads=2,
            mask_token_id=4,
            special_token_ids=(4,),
        )
    )
    model = make(VideoQAConfig(**MASKED, num_answers=3))
    shared = pretrained.state_dict()
    model.load_state_dict({name: shared.get(name, value) for name, value in model.state_dict().items()})
    answers = [[7], [9, 11], [30]]
    model.start_from_words(pretrained.word_head.weight, pretrained.word_head.bias, answers)

    video, ids = make_batch()
    closing = CU_SEQLENS[1:].long() - 1
    hidden = torch.zeros(len(ids), dtype=torch.bool).index_fill(0, closing, True)
    every = torch.arange(model.config.num_tokens, dtype=torch.int32).repeat(3, 1)
    plan = lay_out(
        pretrained.config,
        StepMasks(every, every[:, :1], hidden),
        CaptionTokens(ids, np.array(LENGTHS)),
        mismatch=np.array([1, 2, 0]),
        sample_ids=torch.arange(3),
    )
    words = pretrained.word_head(pretrained(video, plan).word_features)
    expected = torch.stack([words[:, answer].mean(1) for answer in answers], dim=1)
    torch.testing.assert_close(model(video, model.plan(ids, LENGTHS, range(3))), expected, rtol=1e-4, atol=1e-5)
    assert 4 not in ids[closing]  # the caller's tokens stay as they were


def test_a_masked_readout_learns():
    model = make(VideoQAConfig(**MASKED, num_answers=7))
    video, ids = make_batch()
    plan, target = model.plan(ids, LENGTHS, range(3)), torch.tensor([2, 6, 0])
    first, last = fit(model, lambda: torch.nn.functional.cross_entropy(model(video, plan), target))
    assert last < 0.5 * first


def test_a_masked_readout_sees_the_words_themselves():
    """Beside the encoder: the sum of the input embeddings, at first without effect."""
    model = make(VideoQAConfig(**MASKED, num_answers=7))
    video, ids = make_batch()
    plan = model.plan(ids, LENGTHS, range(3))
    before, columns = model(video, plan), model.head[-1].weight[:, model.config.width :]
    assert not columns.any()
    with torch.no_grad():
        columns.normal_()
    embedded = model.text_embeddings(plan.text_ids, plan.text_positions).split(LENGTHS)
    expected = torch.stack([rows.sum(0) for rows in embedded]) @ columns.T
    torch.testing.assert_close(model(video, plan) - before, expected, rtol=1e-4, atol=1e-3)


def test_a_masked_readout_names_bad_input():
    model, weight, bias = make(VideoQAConfig(**MASKED, num_answers=2)), torch.zeros(50, 64), torch.zeros(50)
    for arguments, message in (
        ((weight, bias, [[7]]), "answers must be 2, got 1"),
        ((weight, bias, [[7], []]), "each answer needs a token, answer 1 has none"),
        ((weight[:40], bias[:40], [[7], [8]]), r"weight must be \[50, 64\] with a bias each, got \[40, 64\], 40"),
    ):
        with pytest.raises(ValueError, match=message):
            model.start_from_words(*arguments)
    with pytest.raises(ValueError, match="only the head of readout 'mask' starts from words, got 'mean'"):
        make(VideoQAConfig(**VIDEO, **TEXT, num_answers=2)).start_from_words(weight, bias, [[7], [8]])
    with pytest.raises(ValueError, match="readout must be 'mean' or 'mask', got 'max'"):
        VideoQAConfig(readout="max")
    with pytest.raises(ValueError, match="mask_token_id 60 is outside the vocabulary of 50"):
        VideoQAConfig(**{**MASKED, "mask_token_id": 60})
