"""Reconstruction of the masked words; the masked pixels' loss is `fastvtp_kernels.masked_pixel_loss` itself."""

from torch import Tensor
from torch.nn.functional import cross_entropy


def masked_word_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the masked words (BERT's masked language model); 0 where no word is masked.

    logits: [M, vocabulary], labels: int64 [M].
    """
    # a batch of very short captions may leave every word visible; the mean of nothing would be NaN
    return cross_entropy(logits.float(), labels, reduction="sum") / max(len(labels), 1)
