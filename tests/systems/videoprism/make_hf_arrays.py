"""A tiny random VideoPrism of transformers and its outputs: `python -m tests.systems.videoprism.make_hf_arrays`."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

ARRAYS = Path(__file__).parent / "arrays"
VISION: dict[str, Any] = {
    "image_size": 24, "num_frames": 3, "tubelet_size": [1, 6, 6], "hidden_size": 24, "num_spatial_layers": 2,
    "num_temporal_layers": 1, "num_attention_heads": 3, "intermediate_size": 40, "num_auxiliary_layers": 1,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 30,
    "max_position_embeddings": 9,
}  # fmt: skip


def write(folder: Path, model_class: str, *, seed: int = 0, **changes: Any) -> Any:
    """Save a model with every parameter random; returns it. changes: of the video tower's config."""
    from transformers.models.videoprism import configuration_videoprism as configs  # pyright: ignore
    from transformers.models.videoprism import modeling_videoprism as models  # pyright: ignore

    torch.manual_seed(seed)
    vision = configs.VideoPrismVisionConfig(**{**VISION, **changes}, attn_implementation="eager")
    text = configs.VideoPrismTextConfig(**TEXT, attn_implementation="eager")
    config = {
        "VideoPrismTextModel": text,
        "VideoPrismClipModel": configs.VideoPrismConfig(vision_config=vision.to_dict(), text_config=text.to_dict()),
    }.get(model_class, vision)
    model = getattr(models, model_class)(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def expected(model: Any, frames: int, size: int) -> dict[str, Tensor]:
    """`video` float32 [B, T, H, W, 3] in [0, 1] and, of a video tower, `tokens` [B, T*S, D], `pooled`."""
    video = torch.rand(2, frames, size, size, 3)
    output = model(video.permute(0, 1, 4, 2, 3), interpolate_pos_encoding=True)
    found = {"video": video, "tokens": output.last_hidden_state}
    return {**found, "pooled": output.pooler_output[:, 0]} if "pooler_output" in output else found


if __name__ == "__main__":
    target = ARRAYS / "hf_videoprism"
    arrays = expected(write(target, "VideoPrismVisionModel"), 3, 24)
    save_file({name: array.contiguous() for name, array in arrays.items()}, target / "expected.safetensors")
