"""Finds out where and with what a benchmark runs; this goes into the record beside its rows."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
PACKAGES = (
    *("torch", "triton", "numpy", "transformers"),
    # Peers of attention, by the names of their distributions.
    *("flash-attn", "flash-attn-3", "flash-attn-4", "nvidia-cutlass-dsl", "xformers"),
    # Readers of videos.
    *("av", "decord", "opencv-python-headless", "torchcodec"),
)
# What decides what is measured. Results are written among the benchmarks, and are no change to them.
SOURCES = ("kernels", "fastvtp", "benchmarks")
NO_SOURCES = ":(exclude)benchmarks/results"
# Names the commit of a copy without a repository.
COMMIT_VARIABLE = "FASTVTP_COMMIT"
GPU_FIELDS = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "temperature.gpu")


def environment(device: torch.device) -> dict[str, Any]:
    """Return device, versions, commit and UTC date; whatever cannot be found out is None.

    `commit` is the one that git knows, else the one that $FASTVTP_COMMIT names. `dirty` says whether there are sources
    that the commit does not hold. `sources` is a digest of them, which tells two copies apart without git.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "device_type": device.type,
        "gpu": _gpu(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform_name(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cudnn": torch.backends.cudnn.version(),
        "commit": _git("rev-parse", "HEAD") or os.environ.get(COMMIT_VARIABLE),
        "dirty": _dirty(),
        "sources": source_digest(ROOT),
    }


def device_name(device: torch.device) -> str:
    """Return the name that the maker gave the GPU, or the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def platform_name() -> str:
    """Return system, machine and libc, as in Linux-x86_64-glibc2.36.

    The kernel's release is left out, because it may name one machine.
    """
    return "-".join(filter(None, [platform.system(), platform.machine(), "".join(platform.libc_ver())]))


def cpu_name() -> str:
    """Return the processor's name, or the kind of machine where the system does not tell it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    # A copy may belong to another user, which git otherwise refuses.
    return _output("git", "-c", "safe.directory=*", "-C", str(ROOT), *arguments)


def _dirty() -> bool | None:
    """Say whether the sources, files that git does not know among them, differ from the commit; None without git."""
    changes = _git("status", "--porcelain", "--untracked-files=all", "--", *SOURCES, NO_SOURCES)
    return None if changes is None else bool(changes)


def source_digest(root: Path) -> str:
    """Return the first 12 digits of SHA-256 over names and contents of the Python sources under `root`."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _gpu(device: torch.device) -> dict[str, str] | None:
    """Read driver, clocks and power limit as they are found; they are never set."""
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    answer = _output("nvidia-smi", f"--id={uuid}", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader")
    if answer is None:
        return None
    return dict(zip(GPU_FIELDS, (value.strip() for value in answer.split(",")), strict=True))


def _output(program: str, *arguments: str) -> str | None:
    """Return what the program prints, or None where it is absent or fails."""
    if shutil.which(program) is None:
        return None
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
