"""What this machine offers and which backend each op will use here, with the reason."""

import importlib.metadata
import platform
from dataclasses import dataclass

import torch

from fastvtp.data.pipeline import automatic_decoder
from fastvtp.version import __version__
from fastvtp_kernels import dispatch, tuning

PACKAGES = (
    "torch", "triton", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "av", "tokenizers", "flash-attn", "xformers",
    "tensorboard", "numpy",
)  # fmt: skip


ATTENTION_LENGTHS = {"frames": 16, "visible video": 168, "video and text": 256, "whole clip": 1568}
"""Longest sequences that users meet, in tokens, for heads of 64."""


@dataclass(frozen=True)
class Finding:
    subject: str
    value: str
    reason: str = ""


def package_findings() -> list[Finding]:
    """Versions of the packages that matter; absent ones say so."""
    findings = [Finding("fastvtp", __version__), Finding("python", platform.python_version())]
    for name in PACKAGES:
        try:
            findings.append(Finding(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "not installed"))
    return findings


def device_findings() -> list[Finding]:
    """Processors, and whether videos are decoded by NVDEC or by PyAV."""
    findings = [Finding("cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        architecture = f"sm_{properties.major}{properties.minor}"
        findings.append(
            Finding(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB", architecture)
        )
    if not torch.cuda.is_available():
        findings.append(Finding("cuda", "none", f"torch {torch.__version__} sees no CUDA device"))
    findings.append(Finding("video decoding", *automatic_decoder(_default_device())))
    return findings


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def backend_findings() -> list[Finding]:
    """The backend that each op takes by default on this machine's device, and why."""
    device = _default_device()
    findings = []
    for op in dispatch.ops():
        try:
            choice = dispatch.resolve_backend(op, None, device)
        except (ValueError, RuntimeError) as error:  # FASTVTP_BACKEND asks for what cannot run
            findings.append(Finding(op, "none", str(error)))
            continue
        missing = [f"{other.backend}: {other.reason}" for other in dispatch.backends(op) if not other.available]
        findings.append(Finding(op, choice.name, "; ".join([choice.reason, *missing])))
        if op == "varlen_attention":
            findings += _attention_findings(choice.name, device)
    return findings


def _attention_findings(backend: str, device: torch.device) -> list[Finding]:
    """What attention does with the common lengths, in bfloat16."""
    return [
        Finding(f"  {length} tokens ({name})", backend, _regime(backend, length, device))
        for name, length in ATTENTION_LENGTHS.items()
    ]


def _regime(backend: str, length: int, device: torch.device) -> str:
    if backend == "reference" and device.type == "cpu":
        return "padded in buckets of similar length"
    if backend in ("reference", "sdpa"):
        return "padded to the longest"
    if backend != "triton":
        return "one kernel for all lengths"
    # Not above: it needs Triton.
    from fastvtp_kernels.attention.kernels import TINY_ROWS

    if length <= TINY_ROWS:
        return "tiny: several sequences share a tile"
    forward, backward = (
        "resident" if length <= rows else "streaming" for rows in tuning.resident_rows(64, torch.bfloat16, device)
    )
    return f"forward {forward}, backward {backward}"
