"""A tiny random TimeSformer and BERT of transformers and their outputs: `python -m tests.modules.make_hf_arrays`."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fastvtp.modules.pixels import CLIP_MEAN, CLIP_STD

ARRAYS = Path(__file__).parent / "arrays"


def write(folder: Path, model: Any, arrays: dict[str, Tensor]) -> None:
    model.save_pretrained(folder)
    save_file({name: array.contiguous() for name, array in arrays.items()}, folder / "expected.safetensors")


def randomised(model: torch.nn.Module) -> Any:
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@torch.no_grad()
def write_timesformer(folder: Path) -> None:
    """`video` uint8 [B, T, H, W, 3], `block<i>` [B, 1 + S * T, D] behind each block, `tokens` behind the last norm."""
    from transformers import TimesformerConfig, TimesformerModel  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    config = TimesformerConfig(
        image_size=16,
        patch_size=4,
        num_frames=3,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        attention_type="divided_space_time",
    )
    model = randomised(TimesformerModel(config))
    video = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    pixels = (video / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    output = model(pixels.permute(0, 1, 4, 2, 3), output_hidden_states=True)
    blocks = {f"block{i}": value for i, value in enumerate(output.hidden_states[1:])}
    write(folder, model, {"video": video, **blocks, "tokens": output.last_hidden_state})


@torch.no_grad()
def write_bert(folder: Path) -> None:
    """`ids`, `mask` int64 [B, L], `layer<i>` [B, L, D] from the embeddings on, `logits` [B, L, words]."""
    from transformers import BertConfig, BertForMaskedLM  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=12,
    )
    model = randomised(BertForMaskedLM(config))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [7]])).long()
    ids = torch.randint(5, 50, mask.shape) * mask
    output = model(ids, attention_mask=mask, output_hidden_states=True)
    layers = {f"layer{i}": value for i, value in enumerate(output.hidden_states)}
    write(folder, model, {"ids": ids, "mask": mask, **layers, "logits": output.logits})


if __name__ == "__main__":
    write_timesformer(ARRAYS / "hf_timesformer")
    write_bert(ARRAYS / "hf_bert")
