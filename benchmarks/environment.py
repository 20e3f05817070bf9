"""Where and with what a benchmark ran: the record that goes beside its rows."""

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "triton", "numpy", "transformers")
GPU_FIELDS = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "temperature.gpu")


def environment(device: torch.device) -> dict[str, Any]:
    """Device, versions, commit and UTC date; whatever cannot be found out is None."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "device_type": device.type,
        "gpu": _gpu(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changes := _git("status", "--porcelain", "--untracked-files=no")) is None else bool(changes),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
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
    return _output("git", "-C", str(ROOT), *arguments)


def _gpu(device: torch.device) -> dict[str, str] | None:
    """Driver, clocks and power limit as they are found; read, never set."""
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    answer = _output("nvidia-smi", f"--id={uuid}", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader")
    if answer is None:
        return None
    return dict(zip(GPU_FIELDS, (value.strip() for value in answer.split(",")), strict=True))


def _output(program: str, *arguments: str) -> str | None:
    """What the program prints, or None where it is absent or fails."""
    if shutil.which(program) is None:
        return None
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the environment and the ceilings that every floor refers to."""
    from .harness import command_line, given_options, measured_environment
    from .record import write_json
    from .timing import timer_for

    given = command_line(main.__doc__).parse_args(arguments)
    found, ceilings = measured_environment(given_options(given), timer_for(given.device))
    if given.json:
        write_json(given.json, [], found)
    print(f"{found['device']}: copy {ceilings.bytes_per_s / 1e12:.3f} TB/s, {ceilings.flops_per_s / 1e12:.1f} TFLOP/s")


if __name__ == "__main__":
    main()
