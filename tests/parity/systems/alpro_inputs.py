"""Inputs of ALPRO's parity folders in the forms that our models take."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastvtp.errors import UserError
from fastvtp.modules.packing import Packing
from fastvtp.modules.pixels import CLIP_MEAN, CLIP_STD
from tests.parity.folder import ParityFolder


class Texts:
    """Padded texts of the inputs. padded, real: int64 and bool [B, L]. ids: int64 [N], the packed ones, with cu_seqlens
    int32 [B+1]."""

    def __init__(self, folder: ParityFolder, name: str):
        self.padded, self.real = folder.input(f"{name}_ids"), folder.input(f"{name}_mask").bool()
        lengths = self.real.sum(dim=1)
        self.length = self.real.shape[1]
        if not torch.equal(self.real, torch.arange(self.length) < lengths[:, None]):
            raise UserError(f"{name}_mask must have the tokens of each text before its padding")
        self.ids, self.lengths = self.padded[self.real], lengths.numpy()
        self.cu_seqlens = torch.from_numpy(np.append(0, self.lengths.cumsum()).astype(np.int32))

    @property
    def packed(self) -> tuple[Tensor, Tensor, int]:
        return self.ids, self.cu_seqlens, self.length


def padded_packing(real: Tensor) -> Packing:
    """Sequences of equal length of which only the real rows, bool [B, L], are attended to."""
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), real.sum(dim=1).cumsum(0)]).int()
    return replace(
        Packing.uniform(len(real), real.shape[1]), key_rows=real.flatten().nonzero()[:, 0], cu_seqlens_k=ends
    )


def read_video(folder: ParityFolder, case: str) -> Tensor:
    """Pixels in [0, 1], float32 [B, T, H, W, 3]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (folder.input(f"{case}video").float() * std + mean).permute(0, 1, 3, 4, 2).contiguous()


def read_crop(folder: ParityFolder, case: str) -> Tensor:
    """Patches inside the crop, bool [B, S]."""
    inside = folder.input(f"{case}mpm_mask") == 0
    patch, video = folder.setting("patch"), folder.input(f"{case}video")
    shown = inside.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None, None]
    if not torch.equal(folder.inputs.get(f"{case}crop_video", video * shown), video * shown):
        raise UserError(f"{case}crop_video is not video with zeros where mpm_mask is 1")
    return inside.flatten(1)
