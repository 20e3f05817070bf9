"""Offers what the contrastive ops are held against: usual code, which holds all B x B logits, and Inf-CL without them.

Each peer takes features a and b [B, D] and the scalars that its op takes. As under torch.autocast, products are in the
features' dtype, softmaxes and sums in float32.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..harness.case import Missing, Options
from ..harness.variants import compiled

Peer = Callable[..., Any]
# B x B float32 matrices that the usual code holds at once, at most: the sigmoid loss's backward pass holds 5.5.
MATRICES = 6
MOST_OF_FREE_MEMORY = 0.8
INF_CL_WIDTHS = (256, 128, 64, 32, 16)


def free_bytes(device: torch.device) -> int:
    """Return how many bytes can be allocated on the device now."""
    if device.type == "cuda":
        # What torch keeps for later is its own to reuse.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def too_large(batch: int, device: torch.device) -> str:
    """Say why the usual code is not tried at this batch size; empty if it is."""
    needed, allowed = MATRICES * batch**2 * 4, MOST_OF_FREE_MEMORY * free_bytes(device)
    if needed <= allowed:
        return ""
    return f"{MATRICES} matrices of {batch} x {batch} are {needed / 1e9:.3g} GB, more than {allowed / 1e9:.3g} GB"


def clip_loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Return the contrastive loss as open_clip's ClipLoss does on one GPU: each direction computes its own logits."""
    labels = torch.arange(len(a), device=a.device)
    of_a, of_b = scale * a @ b.T, scale * b @ a.T
    return (F.cross_entropy(of_a.float(), labels) + F.cross_entropy(of_b.float(), labels)) / 2


def one_product_loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Return the contrastive loss as the pseudocode of CLIP's paper does: one matrix of logits, read both ways."""
    labels = torch.arange(len(a), device=a.device)
    logits = (scale * a @ b.T).float()
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def siglip_loss(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return the sigmoid loss as open_clip's SigLipLoss does on one GPU."""
    logits = scale * a @ b.T + bias
    signs = 2 * torch.eye(len(a), dtype=a.dtype, device=a.device) - 1
    return -F.logsigmoid(signs * logits).sum(dtype=torch.promote_types(a.dtype, torch.float32)) / len(a)


def multinomial(a: Tensor, b: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Draw hard negatives as ALBEF does: softmax of both directions, no weight on the diagonal, torch.multinomial.

    The released loop draws row by row and waits for the device each time; here all rows are drawn at once.
    """
    logits = (scale * a @ b.T).float()
    chosen = []
    for direction in (logits, logits.T):
        weights = direction.softmax(dim=1)
        weights.fill_diagonal_(0)
        chosen.append(torch.multinomial(weights, 1).squeeze(1))
    return chosen[0], chosen[1]


def inf_cl(width: int, device: torch.device) -> Peer | Missing:
    """Return Inf-CL (Cheng et al. 2024) on one GPU: a pass per direction, float32 features, products in TF32."""
    if device.type != "cuda":
        return Missing("its kernels need a CUDA device")
    try:
        from inf_cl import cal_inf_loss  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return Missing(f"cannot be imported: {error}")
    head = next((head for head in INF_CL_WIDTHS if width % head == 0), None)
    if head is None:
        return Missing(f"takes widths that are multiples of {INF_CL_WIDTHS[-1]}, not {width}")

    def run(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        labels = torch.arange(len(a), device=a.device)
        a, b = a.float(), b.float()
        # The package would multiply the same way, but its own `scale` needs a process group in the backward pass.
        of_a = cal_inf_loss(scale * a, b, labels=labels, head_dim=head)
        return (of_a + cal_inf_loss(scale * b, a, labels=labels, head_dim=head)) / 2

    return run


USUAL: dict[str, dict[str, Peer]] = {
    "contrastive_loss": {"open_clip": clip_loss, "one product": one_product_loss},
    "sigmoid_loss": {"open_clip": siglip_loss},
    "hard_negatives": {"albef": multinomial},
}


def peers(op: str, batch: int, width: int, options: Options) -> dict[str, Peer | Missing]:
    """Return the op's peers, or for one that cannot run at this size or on this device the reason."""
    usual = USUAL[op]
    *_, last = usual
    found: dict[str, Peer | Missing] = {**usual, f"compiled {last}": compiled(usual[last], options)}
    if reason := too_large(batch, options.device):
        found = dict.fromkeys(found, Missing(reason))
    if op == "contrastive_loss":
        found["inf_cl"] = inf_cl(width, options.device)
    return found
