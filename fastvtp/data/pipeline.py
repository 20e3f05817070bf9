"""The DALI graph: clips from worker processes, decoded there or here, then cropped, resized, mirrored and augmented.

DALI's wheels decode VP8, VP9 and MJPEG on the CPU and nearly everything on the GPU, so H.264 clips are decoded by PyAV
in the workers on a CPU machine and by NVDEC on a GPU; the graph after the decoder is the same. The two decoders give
the same frames but not the same colours to the last bit: DALI interpolates chroma, libswscale's fast path repeats it.
"""

from __future__ import annotations

import ctypes.util
import logging
import signal
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from fastvtp.data.dali_operations import FILL, rand_augmented
from fastvtp.data.sampling import ClipAugmentation
from fastvtp.data.source import STOP_SIGNALS, ClipSource
from fastvtp.errors import UserError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_CPU_FORMATS = frozenset(
    product(("mjpeg", "vp8", "vp9"), ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"))
)
_GPU_FORMATS = frozenset(product(("h264", "hevc", "mjpeg", "mpeg4", "vp8", "vp9"), ("yuv420p", "yuvj420p")))
_GPU_DECODER_THREADS = 8  # one thread feeds one NVDEC engine, and an H100 has seven of them


def has_nvdec() -> bool:
    """Tell whether the driver's video decoding library is there; compute-only installations leave it out."""
    return ctypes.util.find_library("nvcuvid") is not None


def automatic_decoder(device: torch.device) -> tuple[str, str]:
    """Choose what decoder="auto" means on `device`, "dali" or "pyav"; returns also why."""
    if device.type == "cpu":
        return "pyav", "no CUDA device; PyAV decodes in DALI's workers"
    if not has_nvdec():
        return "pyav", "the driver has no libnvcuvid"
    return "dali", "NVDEC through libnvcuvid"


def dali_formats(decoder: str, device: torch.device) -> frozenset[tuple[str, str]] | None:
    """List the (codec, pixel format) pairs that DALI decodes on `device`, or None where PyAV is to decode in the
    workers.

    "auto" leaves decoding to DALI on a GPU with NVDEC and to PyAV elsewhere.

    Raises:
        UserError: an unknown decoder.
    """
    if decoder not in ("auto", "pyav", "dali"):
        raise UserError(f"decoder: expected 'auto', 'pyav' or 'dali', got {decoder!r}")
    if decoder == "auto":
        decoder, reason = automatic_decoder(device)
        if decoder == "pyav" and device.type == "cuda":
            logger.warning("PyAV decodes on the CPU: %s", reason)
    if decoder == "pyav":
        return None
    if device.type == "cpu":
        return _CPU_FORMATS
    if not has_nvdec():
        raise UserError("decoder='dali' needs NVDEC, but the driver has no libnvcuvid; use decoder='pyav'")

    import torch

    major, minor = torch.cuda.get_device_capability(device)
    # AV1 decoding came with the GA10x and Ada chips and with Blackwell; neither the A100 nor Hopper has it.
    has_av1 = major >= 10 or (major == 8 and minor > 0)
    return _GPU_FORMATS | {("av1", "yuv420p")} if has_av1 else _GPU_FORMATS


def build_pipeline(
    source: ClipSource,
    *,
    size: tuple[int, int] | None,
    device_id: int | None,
    num_workers: int,
    prefetch: int,
) -> Any:
    """Build the DALI pipeline and start its workers.

    Its `run()` gives `meta` int64 `[B, 4]` on the CPU (see `ClipSource.load`) and `video` uint8 `[B, T, H, W, 3]` on
    the device, until the source ends the stream.

    Args:
        source: makes the samples.
        size: height and width of the output; None keeps the size of the video, uncropped.
        device_id: a GPU, or None for the CPU.
        num_workers: worker processes; 0 runs the source in this process.
        prefetch: batches prepared ahead.

    Raises:
        UserError: DALI is not installed.
    """
    try:
        import nvidia.dali.fn
        from nvidia.dali.pipeline import pipeline_def
        from nvidia.dali.types import DALIDataType as dtypes  # noqa: N813
        from nvidia.dali.types import DALIInterpType
    except ImportError as error:
        raise UserError(f"loading video needs DALI: pip install 'fastvtp[dali]' ({error})") from None

    fn: Any = nvidia.dali.fn  # its stubs know neither conditionals nor several outputs
    video_inputs = [(dtypes.UINT8, 4, "FHWC")]
    if not source.decodes:
        video_inputs = [(dtypes.UINT8, 1, ""), (dtypes.INT32, 1, ""), (dtypes.FLOAT, 0, "")]
    window_inputs = [(dtypes.FLOAT, 1, ""), (dtypes.FLOAT, 1, ""), (dtypes.INT32, 0, "")]
    augmentation = source.augmentation or ClipAugmentation()
    operation_inputs = [(dtypes.INT32, 1, ""), (dtypes.FLOAT, 1, "")] if augmentation.policy else []
    box_inputs = [(dtypes.FLOAT, 1, "")] * (2 if augmentation.erasing else 0)
    inputs = [(dtypes.INT64, 1, ""), *video_inputs]
    if size is not None:
        inputs += [*window_inputs, *operation_inputs, *box_inputs]
    kinds, ndims, layouts = (list(column) for column in zip(*inputs, strict=True))

    @pipeline_def(enable_conditionals=not source.decodes or bool(operation_inputs))
    def clips():
        meta, *arrays = fn.external_source(
            source,
            num_outputs=len(inputs),
            batch=False,
            parallel=num_workers > 0,
            prefetch_queue_depth=prefetch if num_workers > 0 else None,
            dtype=kinds,
            ndim=ndims,
            layout=layouts,
        )
        if source.decodes:
            video = arrays[0].gpu() if device_id is not None else arrays[0]
        else:
            encoded, frames, rotation = arrays[:3]
            # Should DALI count fewer frames than PyAV did, the last one stands in for those beyond it, not black.
            device = "cpu" if device_id is None else "mixed"
            video = fn.decoders.video(encoded, device=device, frames=frames, pad_mode="edge")
            if rotation != 0:
                video = fn.rotate(video, angle=rotation, interp_type=DALIInterpType.INTERP_NN)
        if size is None:
            return meta, video
        start, end, flip, *drawn = arrays[len(video_inputs) :]
        video = fn.resize(
            video,
            size=size,
            roi_start=start,
            roi_end=end,
            roi_relative=True,
            interp_type=DALIInterpType.INTERP_LINEAR,
            antialias=True,
        )
        video = fn.flip(video, horizontal=flip)
        if augmentation.policy:
            video = rand_augmented(video, drawn[0], drawn[1], augmentation.policy.number, size)
        if augmentation.erasing:
            anchor, shape = drawn[-2:]
            box = {"anchor": anchor, "shape": shape, "normalized": True, "axis_names": "HW"}
            video = fn.erase(video, **box, fill_value=FILL)
        return meta, video

    pipeline = clips(
        batch_size=source.stream.batches.batch_size,
        device_id=device_id,
        num_threads=max(1, num_workers) if device_id is None else _GPU_DECODER_THREADS,
        py_num_workers=num_workers or None,
        py_start_method="spawn",
        prefetch_queue_depth=prefetch,
        exec_dynamic=True,  # an output stays valid for as long as a tensor made from it lives
    )
    with _main_module_hidden(), _signals_held():
        pipeline.build()
    return pipeline


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let worker processes begin with the signals blocked by which schedulers end all processes of a job: the run that
    they work for saves itself first. `fastvtp.data.source` ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    # a helper of the standard library, started now and not with the first worker: it unblocks SIGTERM in its parent
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep `spawn` from running the user's script again in every worker.

    The workers need nothing from it; so a script works without an `if __name__ == "__main__"` guard, and a worker
    starts without loading torch.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
