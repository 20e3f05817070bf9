"""Video-text contrast (VTC): symmetric InfoNCE between the two towers' features (CLIP, arXiv:2103.00020, figure 3)."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from fastvtp_kernels import contrastive_loss


def video_text_contrast(
    text: Tensor,
    video: Tensor,
    logit_scale: Tensor,
    *,
    sample_ids: Tensor | None = None,
    directions: str = "mean",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """InfoNCE of cosine similarities over the batch.

    text, video: [B, D], row i of one belongs to row i of the other; normalised here in float32.
    logit_scale: [] the inverse temperature, with gradient if it is learned.
    sample_ids: int64 [B]; rows with equal ids are the same clip and count as right answers for each other.
    group: the ranks whose rows are negatives too; None: this batch alone. `fastvtp_kernels.contrastive_loss` says what
        each rank's gradient is.
    directions: "mean" of text-to-video and video-to-text, or their "sum" (the released SimVTP).
    """
    if directions not in ("mean", "sum"):
        raise ValueError(f"directions must be 'mean' or 'sum', got {directions!r}")
    with torch.autocast(text.device.type, enabled=False):
        loss = contrastive_loss(
            normalize(text.float(), dim=-1), normalize(video.float(), dim=-1), logit_scale.float(),
            positives=sample_ids, group=group,
        )  # fmt: skip
    return loss if directions == "mean" else 2 * loss
