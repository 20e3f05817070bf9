"""What this machine offers and which backend each op will use here, with the reason."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.cuda.nccl
import torch.distributed as dist
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor

from fastvtp import processes
from fastvtp.data.pipeline import automatic_decoder, pairs_on
from fastvtp.data.video.torchcodec_video import require_torchcodec
from fastvtp.data.workers.shared_slots import batch_bytes
from fastvtp.errors import ConfigError, UserError
from fastvtp.training.division import BYTES_A_PARAMETER, LARGEST_SHARE, ParallelConfig, strategy_of
from fastvtp.version import __version__
from fastvtp_kernels import dispatch, tuning
from fastvtp_kernels.attention import choice, limits, plans
from fastvtp_kernels.attention.call import Call, Options
from fastvtp_kernels.attention.problem import of_packed

PACKAGES = (
    "torch",
    "triton",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "av",
    "tokenizers",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "xformers",
    "tensorboard",
    "numpy",
)


LAUNCH_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RESTART_COUNT",
)
"""What torchrun tells its processes."""


class AttentionShape(NamedTuple):
    """Self-attention that users meet: longest sequence in tokens, width of a head, softcap."""

    what: str
    length: int
    width: int = 64
    softcap: float = 0.0


ATTENTION_SHAPES = (
    AttentionShape("tubelets in time", 8),
    AttentionShape("frames in time", 16),
    AttentionShape("visible video and text", 168),
    AttentionShape("the same, heads of ViT-H", 168, 80),
    AttentionShape("an image of ViT-B", 197),
    AttentionShape("video and long text", 400),
    AttentionShape("whole clip", 1568),
    AttentionShape("whole clip of 4096 patches", 4096, softcap=50.0),
)
ATTENTION_DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Finding:
    """A line of a table: of what, what was found, and why it is so."""

    subject: str
    value: str
    reason: str = ""


def print_findings() -> None:
    """Print tables of packages, devices, processes and ops."""
    console = Console()
    for columns, rows in (
        (("package", "version", ""), package_findings()),
        (("device", "found", "why"), device_findings()),
        (("processes", "here", "why"), process_findings()),
        (("videos", "decoded by", "why"), decoding_findings()),
        (("op", "backend", "why, and what is missing"), backend_findings()),
    ):
        table = Table(*(Column(name, overflow="fold") for name in columns))
        for row in rows:
            table.add_row(row.subject, row.value, escape(row.reason))
        console.print(table)


def package_findings() -> list[Finding]:
    """Return versions of the packages that matter; absent ones say so."""
    findings = [Finding("fastvtp", __version__), Finding("python", platform.python_version())]
    for name in PACKAGES:
        try:
            findings.append(Finding(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "not installed"))
    return findings


def device_findings() -> list[Finding]:
    """Return the processors, and whether videos are decoded by NVDEC or by PyAV."""
    findings = [Finding("cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        architecture = f"sm_{properties.major}{properties.minor}"
        findings.append(
            Finding(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB", architecture)
        )
    if not torch.cuda.is_available():
        findings.append(Finding("cuda", "none", f"torch {torch.__version__} sees no CUDA device"))
    return findings


CODECS = ("h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mjpeg")


def decoding_findings() -> list[Finding]:
    """Return what decodes each codec here with data.decoder=auto, what else can, and what batches need of memory."""
    device = _default_device()
    chosen, why = automatic_decoder(device)
    findings = [Finding("data.decoder=auto", chosen, why)]
    try:
        from av import ffmpeg_version_info
    except ImportError as error:
        return [*findings, Finding("libav", "none", f"pip install av ({error})")]
    findings.append(Finding("libav", ffmpeg_version_info, "FFmpeg inside the package av; none has to be installed"))
    findings += [_codec_finding(codec, chosen, device) for codec in CODECS]
    try:
        findings.append(Finding("data.decoder=torchcodec", f"torchcodec {require_torchcodec()}", "where asked for"))
    except UserError as error:
        findings.append(Finding("data.decoder=torchcodec", "none", str(error)))
    clips, frames, pixels, ahead = 64, 16, 224, 2
    size = batch_bytes(clips, frames, (pixels, pixels), ahead)
    why = f"{clips} clips of {frames} x {pixels} x {pixels}, {ahead} batches ahead: memory of no name, not of /dev/shm"
    return [*findings, Finding("memory shared with workers", f"{size / 2**20:.0f} MiB", why)]


def _codec_finding(codec: str, chosen: str, device: torch.device) -> Finding:
    import av
    from av.codec.codec import UnknownCodecError

    try:
        dav1d = codec == "av1" and "libdav1d" in av.codecs_available  # libav's own needs a GPU
        libav = f"libav's {av.Codec('libdav1d' if dav1d else codec, 'r').name}"
    except UnknownCodecError:
        libav = "none: libav here has no decoder of it"
    try:
        formats = sorted(pix_fmt for name, pix_fmt in pairs_on(device) if name == codec)
    except UserError as error:
        return Finding(f"  {codec}", f"pyav, {libav}", str(error))
    if chosen == "dali" and formats:
        return Finding(f"  {codec}", "dali, NVDEC", f"{', '.join(formats)}; others by pyav, {libav}")
    other = f"data.decoder=dali can too: {', '.join(formats)}" if formats else "DALI does not decode it on this device"
    return Finding(f"  {codec}", f"pyav, {libav}", other)


def process_findings() -> list[Finding]:
    """Return the group that a run started here would make: its processes, backends, devices, and how they share a
    model."""
    if not dist.is_available():
        return [Finding("group", "none", "this torch has no torch.distributed: runs are of one process")]
    device = _default_device()
    told = " ".join(f"{name}={os.environ[name]}" for name in LAUNCH_VARIABLES if name in os.environ)
    try:
        rank, world, local = processes.launched()
    except ConfigError as error:
        return [Finding("processes", "none", str(error))]
    if told:
        findings = [Finding("processes", f"{world}, this is {rank}", told)]
    else:
        findings = [Finding("processes", "1", "nobody says RANK and WORLD_SIZE: torchrun does, see `fastvtp launch`")]
    if "SLURM_PROCID" in os.environ and "RANK" not in os.environ:
        tasks = os.environ.get("SLURM_NTASKS", "?")
        why = "Slurm's tasks are no group by themselves: let each srun task be a torchrun, see `fastvtp launch`"
        findings.append(Finding("Slurm", f"{tasks} tasks", why))
    backend, nccl = processes.backend_of(device), "no CUDA device: nothing goes through NCCL"
    if device.type == "cuda":
        nccl = "NCCL " + ".".join(map(str, torch.cuda.nccl.version())) if dist.is_nccl_available() else "NCCL is absent"
    findings.append(Finding("backend", backend, nccl))
    findings.append(_device_of(local, device))
    findings.append(_strategy(world, device))
    threads = os.environ.get("OMP_NUM_THREADS")
    why = "torchrun sets 1 where nobody sets it" if threads is None else "set in the environment"
    return [*findings, Finding("OMP_NUM_THREADS", threads or "not set", why)]


def _device_of(local: int, device: torch.device) -> Finding:
    """Return the device of this process of the machine."""
    if device.type == "cpu":
        return Finding("device", "cpu", "all processes of this machine share it")
    count = torch.cuda.device_count()
    if local >= count:
        return Finding("device", "none", f"LOCAL_RANK={local}, torch sees {count} GPU(s): start fewer processes")
    return Finding("device", f"cuda:{local}", f"pinned by LOCAL_RANK; this machine has GPUs for {count} processes")


def _strategy(world: int, device: torch.device) -> Finding:
    """Return what parallel.strategy=auto chooses for AdamW, for any size of a model."""
    memory = None if device.type == "cpu" else torch.cuda.get_device_properties(device).total_memory
    small = strategy_of(ParallelConfig(), "adamw", world, 0, memory)
    if memory is None:
        return Finding("strategy=auto", small.name, small.why)
    bound = memory * LARGEST_SHARE / BYTES_A_PARAMETER
    large = strategy_of(ParallelConfig(), "adamw", max(world, 2), int(2 * bound), memory)
    why = f"several processes have {large.name} above {bound / 1e9:.2f} billion parameters that AdamW trains"
    return Finding("strategy=auto", small.name, f"one process; {why}" if world == 1 else why)


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def backend_findings() -> list[Finding]:
    """Return the backend that each op takes by default on this machine's device, and why."""
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
            findings += [_attention_finding(shape, device) for shape in ATTENTION_SHAPES]
    return findings


def _attention_finding(shape: AttentionShape, device: torch.device) -> Finding:
    """Return the backend and regime of one training step's attention, per dtype."""
    subject = f"  {shape.length} x {shape.width}{' softcap' if shape.softcap else ''} ({shape.what})"
    found = {str(dtype).removeprefix("torch."): _attention(shape, dtype, device) for dtype in ATTENTION_DTYPES}
    backends = list(dict.fromkeys(backend for backend, _ in found.values()))
    reasons = list(dict.fromkeys(reason for _, reason in found.values()))
    reason = reasons[0] if len(reasons) == 1 else "; ".join(f"{name}: {reason}" for name, (_, reason) in found.items())
    return Finding(subject, ", ".join(backends), reason)


def _attention(shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> tuple[str, str]:
    options = Options(shape.width**-0.5, shape.softcap)
    # Nothing runs: a tensor without memory that takes the tiles of the device.
    with tuning.targeting(tuning.architecture(device)):
        query = torch.empty(shape.length, 1, shape.width, dtype=dtype, device="meta", requires_grad=True)
        ranked = choice.ranked(query, query, query, shape.length, options, True)
        try:
            backend = dispatch.resolve_backend("varlen_attention", None, device, dtype, ranked).name
        except (ValueError, RuntimeError) as error:  # FASTVTP_BACKEND asks for what cannot run
            return "none", str(error)
        return backend, _regime(backend, query, options, device)


_REGIMES = {
    "tiny": "tiny: several sequences share a tile",
    "resident": "resident: one side of a sequence on chip",
    "stream": "streaming",
}


def _regime(backend: str, query: Tensor, options: Options, device: torch.device) -> str:
    if backend == "reference" and device.type == "cpu":
        return "padded in buckets of similar length"
    if backend == "reference":
        return "padded to the longest"
    length, _, width = query.shape
    if backend != "triton":
        refused = limits.refusal(backend, width, query.dtype, options)
        return f"refuses: {refused}" if refused else "padded to the longest" if backend == "sdpa" else "packed rows"
    offsets = torch.empty(2, dtype=torch.int32, device="meta")
    problem = of_packed(query, query, Call(offsets, length, offsets, length, options))
    return _REGIMES[plans.regime(plans.kind_of(problem, query))]
