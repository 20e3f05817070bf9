"""Small frozen towers of both families, and clips for them."""

import torch

from fastvtp.systems.catalogue import build_model
from fastvtp.systems.videomae.model import VideoMAEConfig
from fastvtp.systems.videoprism.encoder import VideoPrismConfig

CONFIGS = {
    "videomae": VideoMAEConfig(
        num_frames=4,
        image_size=32,
        tubelet=(2, 8, 8),
        width=32,
        depth=3,
        num_heads=2,
        decoder_width=16,
        decoder_num_heads=2,
        decoder_depth=1,
    ),
    "videoprism": VideoPrismConfig(
        num_frames=4, image_size=32, patch_size=8, width=32, depth=2, temporal_depth=1, num_heads=2, mlp_hidden=64
    ),
}


def make_tower_model(name: str = "videoprism"):
    """A model of random weights, the same in every call."""
    torch.manual_seed(0)
    return build_model(CONFIGS[name]).eval()


def make_clips(count: int, seed: int = 0) -> torch.Tensor:
    """uint8 [count, 4, 32, 32, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)
