"""What the kernels are for, at the sizes of a training step, and how fast one H200 could be at it: arithmetic.

A floor is the larger of FLOP / 790 TFLOP/s and bytes / 4.3 TB/s (both rates measured on such a GPU), every byte from
memory; a workload is one or more launches of `compile_cases`, whose times in the model are added.
"""

from typing import NamedTuple

from .compile_cases import BATCH, DECODER_WIDTH, FEATURES, HEADS, MASKED, PAIRS, TOKENS, VALUES, VISIBLE, WIDTH
from .compile_device import DEVICES

ARCHITECTURE = "sm_90"


class Workload(NamedTuple):
    """One op of a step."""

    name: str
    case: str
    """Of `compile_cases`."""
    flops: float
    bytes: float

    @property
    def floor(self) -> float:
        """Microseconds."""
        device = DEVICES[ARCHITECTURE]
        return max(self.flops / device.teraflops, self.bytes / device.terabytes) * 1e-6


def _attention(name: str, case: str, sequences: int, length: int, heads: int) -> list[Workload]:
    """Forward reads query, key and value and writes the output, two products; backward reads five tensors and writes
    three, five products. The log-sum-exp is left out."""
    tensor = 2 * 64 * sequences * length * heads
    product = tensor * length
    return [
        Workload(f"{name}, forward", f"attention {case} bfloat16", 2 * product, 4 * tensor),
        Workload(f"{name}, backward", f"attention {case} bfloat16 backward", 5 * product, 8 * tensor),
    ]


_TOKENS = BATCH * VISIBLE
_EMBEDDING = 2 * _TOKENS * VALUES * WIDTH
_PIXELS = BATCH * MASKED * VALUES
_LOGITS = 2 * PAIRS**2 * FEATURES
WORKLOADS = [
    Workload(
        f"embed {VISIBLE} of {TOKENS} tubelets, forward",
        "tubelet_embed bf16",
        _EMBEDDING,
        _TOKENS * (VALUES + 2 * WIDTH) + 2 * VALUES * WIDTH + 2 * TOKENS * WIDTH,
    ),
    Workload(
        "embed, backward",
        "tubelet_embed backward bf16",
        _EMBEDDING,
        _TOKENS * (VALUES + 2 * WIDTH) + 2 * VALUES * WIDTH + 2 * TOKENS * WIDTH,
    ),
    Workload(f"pixel loss of {MASKED} tubelets, with gradient", "masked_pixel_loss patch_channel bf16", 0, _PIXELS * 5),
    Workload("decoder input", "assemble_tokens bf16", 0, 2 * BATCH * DECODER_WIDTH * (TOKENS + VISIBLE)),
    *_attention(f"encoder layer, 168 rows x {HEADS} heads", "168 x 64", BATCH, 168, HEADS),
    *_attention("decoder layer, 1600 rows x 6 heads", "1600 x 6 x 64", BATCH, 1600, 6),
    *_attention(f"attention over 16 frames, 256 places x {HEADS} heads", "axis of 16 x 64", BATCH * 256, 16, HEADS),
    Workload(f"InfoNCE {PAIRS} x {FEATURES}, log-sum-exps", "contrastive_loss bf16", _LOGITS, 4 * PAIRS * FEATURES),
    Workload(
        f"InfoNCE {PAIRS} x {FEATURES}, gradient of the logits",
        "contrastive_loss gradient bf16",
        _LOGITS,
        4 * PAIRS * FEATURES + 2 * PAIRS**2,
    ),
    Workload(
        f"SigLIP {PAIRS} x {FEATURES}, loss and gradient of the logits",
        "sigmoid_loss bf16",
        _LOGITS,
        4 * PAIRS * FEATURES + 2 * PAIRS**2,
    ),
    Workload(f"hard negatives {PAIRS} x {FEATURES}", "hard_negatives bf16", _LOGITS, 4 * PAIRS * FEATURES),
]
