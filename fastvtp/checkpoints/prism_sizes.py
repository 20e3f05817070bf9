"""Settings of VideoPrism's models that the shapes of a checkpoint show."""

import math
import re
from collections.abc import Mapping
from typing import Any

from fastvtp.checkpoints.native import CheckpointError

_STACKS = {"depth": "spatial", "temporal_depth": "temporal"}  # within the encoder
_ROWS = {
    "vocab_size": "text_encoder.token_embeddings.weight",
    "projection_dim": "contrast.text_projection.weight",
    "num_classes": "head.weight",
}
_NORM_BEHIND = "text_encoder.transformer.blocks.0.branch_norm1.weight"


def shown_by_prism(shapes: Mapping[str, tuple[int, ...]], checkpoint: str) -> dict[str, Any]:
    """Settings by name, from shapes by fastvtp's names; the number of heads is not among them.

    checkpoint: how messages call it. Raises CheckpointError without a patch embedding or a square of positions.
    """
    stem = next((s for s in ("video_encoder.", "encoder.", "") if f"{s}spatial_positions" in shapes), "")
    weight, places, times = (
        shapes.get(f"{stem}{name}", ()) for name in ("weight", "spatial_positions", "temporal_positions")
    )
    side = math.isqrt(places[0]) if len(places) == 2 else 0
    if len(weight) != 5 or len(times) != 2 or not side or side**2 != places[0]:
        raise CheckpointError(
            f"{checkpoint} has no patch embedding [width, 3, 1, height, width] with a square of positions and times"
        )
    width, patch = weight[0], weight[-1]
    values: dict[str, Any] = {
        "width": width, "patch_size": patch, "image_size": side * patch, "num_frames": times[0],
        **{setting: _depth(shapes, f"{stem}{stack}") for setting, stack in _STACKS.items()},
        "auxiliary_depth": _depth(shapes, "auxiliary"),
        "text_norm": "primer_hybrid" if _NORM_BEHIND in shapes else "pre",
        "learnable_temperature": "contrast.log_logit_scale" in shapes,
    }  # fmt: skip
    if any(name.startswith("text_encoder.") for name in shapes):
        values["text_depth"] = _depth(shapes, "text_encoder.transformer")
    hidden = [shapes.get(f"{stem}{stack}.blocks.0.mlp.fc1.weight") for stack in _STACKS.values()]
    if found := next(filter(None, hidden), None):
        values["mlp_hidden"] = found[0]
    values |= {setting: shapes[name][0] for setting, name in _ROWS.items() if shapes.get(name)}
    if "num_classes" in values:  # the video-text model's pooler is another
        pooled = shapes.get("pooler.query.weight", (width,))[0]
        values["pooler_hidden"] = 0 if pooled == width else pooled
    return values


def _depth(shapes: Mapping[str, tuple[int, ...]], stack: str) -> int:
    blocks = re.compile(rf"{re.escape(stack)}\.blocks\.(\d+)\.")
    return len({found[1] for name in shapes if (found := blocks.match(name))})
