"""Sizes of small VideoPrisms; the encoder's are those of its parity folder."""

from typing import Any

SIDE = 24
SIZES: dict[str, Any] = {
    "num_frames": 4,
    "image_size": SIDE,
    "patch_size": 6,
    "width": 32,
    "depth": 2,
    "temporal_depth": 2,
    "num_heads": 4,
    "mlp_hidden": 64,
}
TEXT: dict[str, Any] = {"auxiliary_depth": 1, "vocab_size": 40, "max_text_length": 9, "text_depth": 2}
