import types

import pytest
import torch

from fastvtp.evaluation.matching import (
    EncodedSet,
    encode_set,
    match_scores,
    matching_metrics,
    matching_ranks,
)
from fastvtp.modules.packing import Packing
from fastvtp.systems.alpro.model import AlproFusion
from fastvtp.systems.alpro.towers import AlproConfig

CONFIG = AlproConfig(
    num_frames=2,
    image_size=16,
    patch_size=8,
    width=32,
    depth=1,
    num_heads=2,
    text_depth=1,
    fusion_depth=1,
    text_num_heads=2,
    text_hidden=64,
    projection_dim=16,
    max_text_length=12,
    vocab_size=50,
    mask_token_id=4,
    special_token_ids=(0, 1, 2, 3, 4),
)


def make_model() -> AlproFusion:
    torch.manual_seed(0)
    model = AlproFusion(CONFIG)
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> AlproFusion:
    return make_model()


def make_loader(records: int = 7, batch_size: int = 3):
    generator = torch.Generator().manual_seed(0)
    lengths = [3 + (5 * i) % 7 for i in range(records)]
    texts = [torch.randint(5, 50, (n,), generator=generator) for n in lengths]
    video = torch.randint(0, 256, (records, 2, 16, 16, 3), dtype=torch.uint8, generator=generator)
    for start in range(0, records, batch_size):
        part = slice(start, min(start + batch_size, records))
        yield types.SimpleNamespace(
            video=video[part],
            input_ids=torch.cat(texts[part]),
            text_lengths=tuple(lengths[part]),
            cu_seqlens=torch.tensor([0, *lengths[part]]).cumsum(0).int(),
            max_text_length=max(lengths[part]),
            captions=[str(i) for i in range(records)][part],
            sample_ids=torch.arange(records)[part],
        )


def released_way(model: AlproFusion) -> torch.Tensor:
    """Every text encoded anew for every clip, one pair at a time: log-odds [texts, clips]."""
    scores = torch.empty(7, 7)
    batches = list(make_loader(batch_size=1))
    with torch.no_grad():
        for i, text in enumerate(batches):
            for j, clip in enumerate(batches):
                tokens, _ = model.read_texts(text.input_ids, text.cu_seqlens, text.max_text_length)
                clips, _ = model.read_clips(clip.video)
                pair = torch.zeros(1, dtype=torch.int64)
                scores[i, j] = model.score_pairs(
                    tokens,
                    clips,
                    cu_seqlens=text.cu_seqlens,
                    max_seqlen=text.max_text_length,
                    text_index=pair,
                    clip_index=pair,
                )
    return scores


def test_all_pairs_equal_the_released_way_with_fewer_calls(model, monkeypatch):
    calls = []
    original = type(model.text_encoder).forward

    def counting(self, *arguments, **named):
        calls.append(self)
        return original(self, *arguments, **named)

    monkeypatch.setattr(type(model.text_encoder), "forward", counting)
    expected = released_way(model)
    released_calls = sum(layer is model.text_encoder for layer in calls)
    calls.clear()
    encoded = encode_set(model, make_loader(), device="cpu", progress=False)
    to_video, to_text = match_scores(model, encoded, pairs_per_call=10, progress=False)
    torch.testing.assert_close(to_video, expected, rtol=1e-4, atol=1e-5)
    assert to_text is to_video
    assert sum(layer is model.text_encoder for layer in calls) == 3
    assert released_calls == 49


@pytest.mark.parametrize("top_k", [1, 3, 7, 50])
def test_top_k_scores_the_first_and_keeps_the_order_of_the_rest(model, top_k):
    encoded = encode_set(model, make_loader(), device="cpu", progress=False)
    every, _ = match_scores(model, encoded, progress=False)
    for scores, direction in zip(match_scores(model, encoded, top_k=top_k, progress=False), (0, 1), strict=True):
        scores, truth, contrast = (
            matrix if direction == 0 else matrix.T for matrix in (scores, every, encoded.similarity)
        )
        for row, right, similar in zip(scores, truth, contrast, strict=True):
            first = similar.argsort(descending=True)
            k = min(top_k, 7)
            torch.testing.assert_close(row[first[:k]], right[first[:k]], rtol=1e-4, atol=1e-5, check_dtype=False)
            if k < 7:
                assert row[first[:k]].min() > row[first[k:]].max()
            assert torch.equal(row[first[k:]].argsort(descending=True), torch.arange(7 - k))


@pytest.mark.parametrize("top_k", [None, 3])
def test_the_similarity_may_be_added_to_the_logit_of_a_match(model, top_k):
    """LAVIS's scores, pair by pair from the heads; behind them the others in the contrast's order."""
    encoded = encode_set(model, make_loader(), device="cpu", progress=False)
    batches, expected = list(make_loader(batch_size=1)), torch.empty(7, 7)
    with torch.no_grad():
        for i, text in enumerate(batches):
            tokens, feature = model.read_texts(text.input_ids, text.cu_seqlens, text.max_text_length)
            packing = Packing(text.cu_seqlens, text.max_text_length)
            for j, clip in enumerate(batches):
                clips, clip_feature = model.read_clips(clip.video)
                pair = torch.zeros(1, dtype=torch.int64)
                fused, ends = model.fuse(
                    tokens, packing, clips, text_index=pair, video_index=pair, num_text_rows=len(tokens)
                )
                expected[i, j] = model.match_logits(fused, ends)[0, 1] + (feature * clip_feature).sum()
    found = match_scores(model, encoded, top_k=top_k, add_similarity=True, progress=False)
    plain = match_scores(model, encoded, top_k=top_k, progress=False)
    assert not torch.allclose(found[0], plain[0], atol=0.01)
    for scores, right, contrast in (
        (found[0], expected, encoded.similarity),
        (found[1].T, expected.T, encoded.similarity.T),
    ):
        for row, truth, similar in zip(scores, right, contrast, strict=True):
            order = similar.argsort(descending=True)
            first, rest = order[:top_k], order[len(order) if top_k is None else top_k :]
            torch.testing.assert_close(row[first], truth[first], rtol=1e-4, atol=1e-5, check_dtype=False)
            assert torch.equal(row[rest].argsort(descending=True), torch.arange(len(rest)))
            assert not len(rest) or row[first].min() > row[rest].max()


class Table:
    """A matching head whose score of every pair is written down."""

    def __init__(self, scores: torch.Tensor):
        self.scores, self.seen = scores, torch.zeros_like(scores, dtype=torch.bool)

    def modules(self):
        return iter(())

    def eval(self):
        return self

    def score_pairs(self, *tokens, text_index, clip_index, **options):
        self.seen[text_index, clip_index] = True
        return self.scores[text_index, clip_index]


def encoded_set(similarity: torch.Tensor) -> EncodedSet:
    texts, clips = similarity.shape
    return EncodedSet(
        text_tokens=torch.zeros(texts, 1),
        cu_seqlens=torch.arange(texts + 1, dtype=torch.int32),
        max_seqlen=1,
        clip_tokens=torch.zeros(clips, 1, 1),
        similarity=similarity,
        captions=[str(i) for i in range(texts)],
        ids=list(range(clips)),
        video_of_text=torch.arange(texts) % clips,
    )


def test_pairs_as_similar_as_the_last_of_the_first_are_scored_too():
    """Whichever of them a sort puts first depends on their places in the list, not on the model."""
    similarity = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.1], [0.5, 0.5, 0.9, 0.1, 0.5], [0.9, 0.8, 0.7, 0.6, 0.5]])
    similarity = torch.cat([similarity, similarity - 0.05])  # so that columns do not add pairs of their own
    head = Table(torch.arange(30.0).view(6, 5))
    scores, _ = match_scores(head, encoded_set(similarity), top_k=2, progress=False)
    for row, similar, truth in zip(scores, similarity, head.scores, strict=True):
        first = similar >= similar.sort(descending=True).values[1]
        assert torch.equal(row[first], truth[first].double())
        assert row[~first].max() < scores[similarity >= 0.85].min()
    assert [int((row > -1).sum()) for row in scores[:3]] == [4, 4, 2]


def test_pairs_behind_the_scored_ones_keep_what_tells_them_apart():
    similarity = torch.rand(400, 300, generator=torch.Generator().manual_seed(0)) / 100
    head = Table(-1000 - torch.rand(400, 300, generator=torch.Generator().manual_seed(1)))
    for scores, contrast in zip(
        match_scores(head, encoded_set(similarity), top_k=3, progress=False),
        (similarity, similarity.T),
        strict=True,
    ):
        scores = scores if scores.shape == contrast.shape else scores.T
        for row, similar in zip(scores, contrast, strict=True):
            behind = similar < similar.sort(descending=True).values[2]
            assert len(row[behind].unique()) == len(similar[behind].unique())


def test_ranks_take_each_direction_from_its_own_scores():
    to_video, to_text = torch.eye(3), torch.eye(3).roll(1, dims=0)
    ranks = matching_ranks(to_video, to_text)
    assert ranks.t2v.tolist() == [1, 1, 1]
    assert (ranks.v2t > 1).all()
    metrics = matching_metrics(to_video, to_text)
    assert (metrics["t2v"]["R1"], metrics["v2t"]["R1"]) == (100, 0)


def test_bad_input(model):
    encoded = encode_set(model, make_loader(), device="cpu", progress=False)
    with pytest.raises(ValueError, match="top_k must be at least 1, or none for all pairs, got 0"):
        match_scores(model, encoded, top_k=0, progress=False)
    with pytest.raises(ValueError, match="no clip could be decoded"):
        encode_set(model, [], device="cpu", progress=False)
