"""The video tower of a model whose encoder reads packed tubelets, as probes of frozen features read it.

Shape legend: B = clips, L = tokens of a clip, N = packed tokens, D = width.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastvtp.frozen.towers import VideoTower
from fastvtp.modules.layers import Transformer
from fastvtp.systems.videomae.model import VideoEmbeddings


class PackedTower(VideoTower):
    """Tubelets through a transformer: VideoMAE, what shares its encoder, and what is fine-tuned from these."""

    def __init__(self, model: nn.Module, embeddings: VideoEmbeddings, encoder: Transformer):
        super().__init__(model, embeddings.weight.shape[0], embeddings.grid)
        self._embeddings, self._encoder = embeddings, encoder

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self._encoder.blocks)

    def _encode(self, video: Tensor, layers: Sequence[int]) -> list[Tensor]:
        x_ND, packing = self._embeddings.embed_clips(video)
        kept = []
        for number, block in enumerate(self._encoder.blocks):
            x_ND = block(x_ND, packing)
            if number in layers:
                kept.append(x_ND)
        return [x.view(len(video), packing.max_seqlen, -1) for x in (*kept, self._encoder.norm(x_ND))]


def encoder_tower(model: Any) -> PackedTower:
    """Return the tower of a model that has `video_embeddings` and an `encoder`."""
    return PackedTower(model, model.video_embeddings, model.encoder)


def video_encoder_tower(model: Any) -> PackedTower:
    """Return the tower of a model that has `video_embeddings` and a `video_encoder`, beside another for texts."""
    return PackedTower(model, model.video_embeddings, model.video_encoder)
