"""The video tower of VideoPrism's models, as probes of frozen features read it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastvtp.frozen.towers import VideoTower
from fastvtp.systems.videoprism.encoder import VideoPrismEncoder


class PrismTower(VideoTower):
    """Blocks within frames, then along time."""

    def __init__(self, model: nn.Module, encoder: VideoPrismEncoder):
        super().__init__(model, encoder.config.width, encoder.config.grid)
        self._encoder = encoder

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self._encoder.spatial.blocks, *self._encoder.temporal.blocks]

    def _encode(self, video: Tensor, layers: Sequence[int]) -> list[Tensor]:
        return self._encoder.layer_tokens(video, layers)


def own_tower(model: VideoPrismEncoder) -> PrismTower:
    """Return the tower that an encoder alone is."""
    return PrismTower(model, model)


def encoder_tower(model: Any) -> PrismTower:
    """Return the tower of a model that has an `encoder`."""
    return PrismTower(model, model.encoder)


def video_encoder_tower(model: Any) -> PrismTower:
    """Return the tower of a model that has a `video_encoder`."""
    return PrismTower(model, model.video_encoder)
