"""Tiny random VideoMAEs of transformers and their outputs: `python -m tests.checkpoints.make_hf_arrays`."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fastvtp.modules.pixels import IMAGENET_MEAN, IMAGENET_STD

ARRAYS = Path(__file__).parent / "arrays"
SIZES: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "num_frames": 4, "tubelet_size": 2, "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 3, "intermediate_size": 96, "decoder_num_attention_heads": 2, "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 64, "num_labels": 5,
}  # fmt: skip


def write(folder: Path, *, pretraining: bool, seed: int = 0, **changes: Any) -> None:
    """Save a model with every parameter random, and `expected.safetensors`: uint8 video [B, T, H, W, 3], logits, and
    of pretraining the mask (true: hidden) [B, N] and the loss []."""
    from transformers import (  # pyright: ignore[reportMissingImports]
        VideoMAEConfig,
        VideoMAEForPreTraining,
        VideoMAEForVideoClassification,
    )

    torch.manual_seed(seed)
    config = VideoMAEConfig(**{**SIZES, "use_mean_pooling": not pretraining, **changes})
    model = (VideoMAEForPreTraining if pretraining else VideoMAEForVideoClassification)(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    video = torch.randint(0, 256, (2, config.num_frames, config.image_size, config.image_size, 3), dtype=torch.uint8)
    pixels = (video / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    arrays = {"video": video}
    with torch.no_grad():
        if pretraining:
            slots, cells = config.num_frames // config.tubelet_size, (config.image_size // config.patch_size) ** 2
            order = torch.rand(2, 1, cells).argsort(-1)
            arrays["mask"] = (order < int(0.75 * cells)).expand(-1, slots, -1).flatten(1)
            output = model(pixels.permute(0, 1, 4, 2, 3), bool_masked_pos=arrays["mask"])
            arrays["loss"] = output.loss
        else:
            output = model(pixels.permute(0, 1, 4, 2, 3))
    model.save_pretrained(folder)
    save_file({**arrays, "logits": output.logits}, folder / "expected.safetensors")


if __name__ == "__main__":
    write(ARRAYS / "hf_pretraining", pretraining=True)
    write(ARRAYS / "hf_classification", pretraining=False)
