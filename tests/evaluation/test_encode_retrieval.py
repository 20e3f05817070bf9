"""Embedding a test set, in one view a clip and in several."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastvtp.evaluation.retrieval import encode_retrieval, retrieval_metrics
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig


class MeanModel(nn.Module):
    """Embeds a clip by its mean pixel and a caption by its mean token, on the unit circle."""

    averages_unit_views = False

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.frozen, self.dropout = nn.Identity(), nn.Dropout(0.5)

    def embed(self, angle):
        angle = self.dropout(angle)
        return self.scale * torch.stack([angle.cos(), angle.sin()], dim=1)

    def embed_video(self, video):
        """Longer for brighter clips: what is averaged before and after normalising differs."""
        brightness = video.float().mean(dim=(1, 2, 3, 4))
        return self.embed(brightness / 100) * brightness[:, None]

    def encode_text(self, input_ids, cu_seqlens, max_seqlen):
        assert max_seqlen >= cu_seqlens.diff().max()
        sums = torch.tensor([part.sum() for part in input_ids.tensor_split(cu_seqlens[1:-1].long())])
        return self.embed(sums / cu_seqlens.diff() / 100)


def batches(values: list[list[int]]):
    for start, group in enumerate(values):
        lengths = torch.arange(len(group)) + 1
        yield SimpleNamespace(
            video=torch.stack([torch.full((2, 4, 4, 3), value, dtype=torch.uint8) for value in group]),
            input_ids=torch.repeat_interleave(torch.tensor(group), lengths),
            cu_seqlens=torch.cat([torch.zeros(1), lengths.cumsum(0)]).int(),
            max_text_length=len(group),
            captions=[f"clip of {value}" for value in group],
            sample_ids=torch.arange(len(group)) + 10 * start,
        )


def test_encode_retrieval_keeps_order_and_restores_modes():
    model = MeanModel().train()
    model.frozen.eval()
    embeddings = encode_retrieval(model, batches([[5, 90, 40], [150, 220]]), device="cpu", progress=False)
    assert model.training
    assert model.dropout.training
    assert not model.frozen.training
    assert embeddings.captions == [f"clip of {value}" for value in (5, 90, 40, 150, 220)]
    assert embeddings.ids == [0, 1, 2, 10, 11]
    angles = torch.tensor([5, 90, 40, 150, 220]) / 100
    torch.testing.assert_close(embeddings.video, torch.stack([angles.cos(), angles.sin()], dim=1))
    torch.testing.assert_close(embeddings.text, embeddings.video)
    assert retrieval_metrics(embeddings.similarity())["t2v"]["R1"] == 100
    assert not embeddings.video.is_inference()
    assert not embeddings.video.requires_grad


def viewed(batch_sizes: list[int]):
    """Three clips in two views each, the pairs of values below, split into batches of these sizes."""
    ids, values = [7, 7, 3, 3, 5, 5], [10, 200, 50, 80, 120, 30]
    lengths, start = [1, 1, 3, 3, 2, 2], 0
    for size in batch_sizes:
        part = slice(start, start + size)
        start += size
        yield SimpleNamespace(
            video=torch.stack([torch.full((2, 4, 4, 3), value, dtype=torch.uint8) for value in values[part]]),
            input_ids=torch.repeat_interleave(torch.tensor(ids[part]), torch.tensor(lengths[part])),
            cu_seqlens=torch.tensor([0, *lengths[part]]).cumsum(0).int(),
            max_text_length=max(lengths[part]),
            captions=[f"clip {index}" for index in ids[part]],
            sample_ids=torch.tensor(ids[part]),
        )


@pytest.mark.parametrize("batch_sizes", [[6], [1] * 6, [3, 3], [1, 4, 1], [5, 1]])
def test_views_are_averaged_before_they_are_normalised_and_captions_are_read_once(batch_sizes, monkeypatch):
    model, read = MeanModel(), []
    encode_text = model.encode_text
    monkeypatch.setattr(
        model, "encode_text", lambda *arguments: (read.append(arguments[0].tolist()), encode_text(*arguments))[1]
    )
    embeddings = encode_retrieval(model, viewed(batch_sizes), device="cpu", progress=False)
    assert embeddings.ids == [7, 3, 5]
    assert embeddings.captions == ["clip 7", "clip 3", "clip 5"]
    assert [token for tokens in read for token in tokens] == [7, 3, 3, 3, 5, 5]
    values = torch.tensor([[10.0, 200.0], [50.0, 80.0], [120.0, 30.0]])
    sums = (torch.stack([(values / 100).cos(), (values / 100).sin()], dim=-1) * values[..., None]).sum(1)
    torch.testing.assert_close(embeddings.video, sums / sums.norm(dim=1, keepdim=True))
    angles = torch.tensor([7.0, 3.0, 5.0]) / 100
    torch.testing.assert_close(embeddings.text, torch.stack([angles.cos(), angles.sin()], dim=1))


def test_views_of_a_model_that_averages_unit_vectors():
    """The mean of (1, 0) and (0, 1) points between them, however long what they were scaled from was."""
    model = MeanModel()
    model.averages_unit_views = True
    model.encode_video = lambda video: torch.nn.functional.normalize(model.embed_video(video), dim=-1)
    embeddings = encode_retrieval(model, viewed([6]), device="cpu", progress=False)
    values = torch.tensor([[10.0, 200.0], [50.0, 80.0], [120.0, 30.0]]) / 100
    sums = torch.stack([values.cos(), values.sin()], dim=-1).sum(1)
    torch.testing.assert_close(embeddings.video, sums / sums.norm(dim=1, keepdim=True))


def test_a_clip_that_lacks_views_leaves_no_caption_behind():
    embeddings = encode_retrieval(MeanModel(), viewed([3]), device="cpu", progress=False)
    assert (embeddings.ids, embeddings.captions, len(embeddings.text), len(embeddings.video)) == ([7], ["clip 7"], 1, 1)


def test_one_view_equals_the_model_own_encoding():
    config = DualEncoderConfig(
        num_frames=2,
        image_size=4,
        tubelet=(2, 2, 2),
        width=16,
        depth=1,
        num_heads=2,
        vocab_size=256,
        max_text_length=8,
        pad_text=False,
        text_dropout=0.0,
    )
    torch.manual_seed(0)
    model = build_model(config, torch.device("cpu"))
    (batch,) = batches([[5, 90, 40]])
    embeddings = encode_retrieval(model, [batch], device="cpu", progress=False)
    with torch.no_grad():
        model.eval()
        assert torch.equal(embeddings.video, model.encode_video(batch.video))
        assert torch.equal(embeddings.text, model.encode_text(batch.input_ids, batch.cu_seqlens, 3))


def test_encode_retrieval_names_the_fault_and_still_restores_modes(monkeypatch):
    model = MeanModel(scale=3.0).train()
    with pytest.raises(ValueError, match="encode_text must give rows of unit length, got norms 3 to 3"):
        encode_retrieval(model, batches([[1, 2]]), device="cpu", progress=False)
    assert model.dropout.training
    with pytest.raises(ValueError, match="encode_text must give rows of unit length, got norms nan"):
        encode_retrieval(MeanModel(scale=torch.nan), batches([[1, 2]]), device="cpu", progress=False)
    with pytest.raises(ValueError, match="no clip could be decoded"):
        encode_retrieval(model, [], device="cpu", progress=False)
    monkeypatch.setattr(model, "encode_text", lambda *arguments: torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"encode_text must give \[2, 2\], got \[1, 2\]"):
        encode_retrieval(model, batches([[1, 2]]), device="cpu", progress=False)
    monkeypatch.setattr(model, "embed_video", lambda video: torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"embed_video must give \[2, D\], got \[1, 2\]"):
        encode_retrieval(model, batches([[1, 2]]), device="cpu", progress=False)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="normalised, embed_video must give rows of unit length, got norms 0 to 1"):
        encode_retrieval(MeanModel(), batches([[0, 2]]), device="cpu", progress=False)
