"""The DALI graph: samples from worker processes, decoded there or here, then cropped, resized, mirrored and augmented.

DALI's wheels decode VP8, VP9 and MJPEG on the CPU and nearly everything on the GPU, so H.264 clips are decoded by PyAV
in the workers on a CPU machine and by NVDEC on a GPU; the graph after the decoder is the same. Clips of both kinds meet
in one batch, since files that DALI cannot decode, or not in the right colours, are PyAV's on a GPU too. The two
decoders give the same frames but not the same colours to the last bit: DALI interpolates chroma, libswscale's fast path
repeats it.
"""

from __future__ import annotations

import ctypes.util
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import islice, product
from typing import TYPE_CHECKING, Any

from fastvtp.data.dali_operations import FILL, rand_augmented
from fastvtp.data.dali_trial import conversions
from fastvtp.data.handing_over import BY_DALI_REPAIRED, BY_PYAV, DaliFormats
from fastvtp.data.sampling import ClipAugmentation
from fastvtp.data.source import ClipSource
from fastvtp.data.video.decoding import Video
from fastvtp.data.video.torchcodec_video import TorchCodecVideo, require_torchcodec
from fastvtp.data.workers.pool import ClipWorkers
from fastvtp.errors import UserError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_CPU_FORMATS = frozenset(
    product(("mjpeg", "vp8", "vp9"), ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"))
)
_GPU_FORMATS = frozenset(product(("h264", "hevc", "mjpeg", "mpeg4", "vp8", "vp9"), ("yuv420p", "yuvj420p")))
_MOST_BYTES = 1 << 28  # of a file, or of whole frames, that come through shared memory; what is larger is copied twice


@cache
def has_nvdec() -> bool:
    """Tell whether the driver's video decoding library is there; compute-only installations leave it out."""
    return ctypes.util.find_library("nvcuvid") is not None


def automatic_decoder(device: torch.device) -> tuple[str, str]:
    """Choose what decoder="auto" means on `device`, "dali" or "pyav"; returns also why."""
    if device.type == "cpu":
        return "pyav", "no CUDA device; PyAV decodes in worker processes"
    if not has_nvdec():
        return "pyav", "the driver has no libnvcuvid"
    return "dali", "NVDEC through libnvcuvid"


def dali_formats(decoder: str, device: torch.device) -> DaliFormats | None:
    """Tell what DALI decodes on `device`, and how; None where PyAV is to decode everything in the workers.

    "auto" leaves decoding to DALI on a GPU with NVDEC and to PyAV elsewhere.

    Raises:
        UserError: an unknown decoder.
    """
    if decoder not in ("auto", "pyav", "dali", "torchcodec"):
        raise UserError(f"decoder: expected 'auto', 'pyav', 'dali' or 'torchcodec', got {decoder!r}")
    if decoder == "auto":
        decoder, reason = automatic_decoder(device)
        if decoder == "pyav" and device.type == "cuda":
            logger.warning("PyAV decodes on the CPU: %s", reason)
    if decoder in ("pyav", "torchcodec"):
        return None
    pairs, device_id = pairs_on(device), None if device.type == "cpu" else device.index
    return DaliFormats(pairs, conversions(frozenset(codec for codec, _ in pairs), device_id))


def opener(decoder: str, device: torch.device) -> Callable[..., Video]:
    """Return what opens videos whose frames are decoded in the workers.

    Raises:
        UserError: torchcodec is asked for and not installed.
    """
    if decoder != "torchcodec":
        return Video
    require_torchcodec()
    return partial(TorchCodecVideo, device=str(device))


def pairs_on(device: torch.device) -> frozenset[tuple[str, str]]:
    """List the (codec, pixel format) pairs that DALI decodes on `device`.

    Raises:
        UserError: a GPU without NVDEC.
    """
    if device.type == "cpu":
        return _CPU_FORMATS
    if not has_nvdec():
        raise UserError("decoder='dali' needs NVDEC, but the driver has no libnvcuvid; use decoder='pyav'")

    import torch

    major, minor = torch.cuda.get_device_capability(device)
    # AV1 decoding came with the GA10x and Ada chips and with Blackwell; neither the A100 nor Hopper has it.
    has_av1 = major >= 10 or (major == 8 and minor > 0)
    return _GPU_FORMATS | {("av1", "yuv420p")} if has_av1 else _GPU_FORMATS


class Feed:
    """Gives DALI the arrays of its batches, made in worker processes or, where there are none, in this one.

    Args:
        source: makes the samples.
        num_workers: processes; 0 makes samples in this one, where nobody can end what takes too long.
        prefetch: batches made ahead.
        clip_bytes: of a sample, where all have the same size.
        seconds: longest time that a file may take a worker; None: any.

    Attributes:
        failures: name and reason of the files that failed, by the number of the sample that they were drawn for.
        beside: of the samples that PyAV decoded where DALI is to, the kind of files that is PyAV's, by their number.
        workers: the processes, or None.
    """

    def __init__(
        self, source: ClipSource, *, num_workers: int, prefetch: int, clip_bytes: int | None, seconds: float | None
    ):
        self.failures: dict[int, tuple[tuple[str, str], ...]] = {}
        self.beside: dict[int, str] = {}
        self._source, self._numbers = source, source.numbers()
        self._batch_size = source.stream.batches.batch_size
        self.workers: ClipWorkers | None = None
        if num_workers:
            self.workers = ClipWorkers(
                source,
                num_workers=num_workers,
                ahead=self._batch_size * (1 + prefetch),
                slot_bytes=clip_bytes or _MOST_BYTES,
                seconds=seconds,
                in_a_row=source.stream.batches.repeats,
            )
            weakref.finalize(self, self.workers.close)  # of a loader that nobody closed

    def __call__(self, iteration: int) -> tuple[list[Any], ...]:
        """Return the arrays of a batch, for each output those of all samples; iteration 0 begins the stream anew.

        Raises:
            StopIteration: the stream has ended.
            NoDecodableClipError: no replacement could be decoded either.
        """
        if iteration == 0:
            self._numbers = self._source.numbers()
            if self.workers:
                self.workers.begin(self._source.numbers())
        numbers = list(islice(self._numbers, self._batch_size))
        if not numbers:
            raise StopIteration
        samples = self.workers.take(numbers) if self.workers else [self._source.load(number) for number in numbers]
        for number, sample in zip(numbers, samples, strict=True):
            self.failures[number] = sample.failures
            if sample.beside:
                self.beside[number] = sample.beside
        return tuple(map(list, zip(*(sample.arrays for sample in samples), strict=True)))

    def set_aside(self, bad: Mapping[str, str]) -> None:
        """Let the source count files as bad in every process, at the latest from the next beginning of the stream
        on."""
        if self.workers:
            self.workers.set_aside(bad)
        else:
            self._source.bad.update(bad)

    def close(self) -> None:
        """End the processes."""
        if self.workers:
            self.workers.close()


def _from_either(own: Sequence[Any], size: tuple[int, int] | None, device_id: int | None) -> Any:
    """Return clips upright, cropped, scaled and mirrored: those that PyAV decoded as they are, those that DALI is to
    decode after all this; for use in a pipeline with conditionals."""
    import nvidia.dali.fn
    from nvidia.dali.types import DALIDataType, DALIInterpType

    fn: Any = nvidia.dali.fn  # its stubs know neither conditionals nor several outputs
    road, encoded, frames, rotation, repair, pictures, *window = own
    if road == BY_PYAV:
        video = pictures.gpu() if device_id is not None else pictures
    else:
        # Should DALI count fewer frames than PyAV did, the last one stands in for those beyond it, not black.
        device = "cpu" if device_id is None else "mixed"
        video = fn.decoders.video(encoded, device=device, frames=frames, pad_mode="edge")
        if rotation != 0:
            video = fn.rotate(video, angle=rotation, interp_type=DALIInterpType.INTERP_NN)
        if window:
            start, end, flip = window
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
        if road == BY_DALI_REPAIRED:  # last, when there are fewest pixels
            video = fn.coord_transform(video, MT=repair, dtype=DALIDataType.UINT8)
    return video


def build_pipeline(
    source: ClipSource, feed: Feed, *, size: tuple[int, int] | None, device_id: int | None, prefetch: int, threads: int
) -> Any:
    """Build the DALI pipeline.

    Its `run()` gives `meta` int64 `[B, 4]` on the CPU (see `ClipSource.load`) and `video` uint8 `[B, T, H, W, 3]` on
    the device, until the source ends the stream.

    Args:
        source: makes the samples.
        feed: hands them over.
        size: height and width of the output; None keeps the size of the video, uncropped.
        device_id: a GPU, or None for the CPU.
        prefetch: batches prepared ahead: while a step runs on one, the next are decoded and copied.
        threads: that decode on a GPU.

    Raises:
        UserError: DALI is not installed.
    """
    try:
        import nvidia.dali.fn
        from nvidia.dali.pipeline import pipeline_def
        from nvidia.dali.types import DALIDataType as dtypes  # noqa: N813
    except ImportError as error:
        raise UserError(f"loading video needs DALI: pip install 'fastvtp[dali]' ({error})") from None

    fn: Any = nvidia.dali.fn  # its stubs know neither conditionals nor several outputs
    video_inputs = [(dtypes.UINT8, 4, "FHWC")]
    if not source.decodes:
        video_inputs = [(dtypes.INT32, 0, ""), (dtypes.UINT8, 1, ""), (dtypes.INT32, 1, ""), (dtypes.FLOAT, 0, "")]
        video_inputs += [(dtypes.FLOAT, 2, ""), (dtypes.UINT8, 4, "FHWC")]
    window_inputs = [(dtypes.FLOAT, 1, ""), (dtypes.FLOAT, 1, ""), (dtypes.INT32, 0, "")]
    augmentation = source.augmentation or ClipAugmentation()
    operation_inputs = [(dtypes.INT32, 1, ""), (dtypes.FLOAT, 1, "")] if augmentation.policy else []
    box_inputs = [(dtypes.FLOAT, 1, "")] * (2 if augmentation.erasing else 0)
    if not source.decodes and size is not None:
        video_inputs += window_inputs
    inputs = [(dtypes.INT64, 1, ""), *video_inputs, *operation_inputs, *box_inputs]
    kinds, ndims, layouts = (list(column) for column in zip(*inputs, strict=True))

    @pipeline_def(enable_conditionals=not source.decodes or bool(operation_inputs))
    def clips():
        meta, *arrays = fn.external_source(
            feed,
            num_outputs=len(inputs),
            batch=True,
            dtype=kinds,
            ndim=ndims,
            layout=layouts,
        )
        own, drawn = arrays[: len(video_inputs)], arrays[len(video_inputs) :]
        if source.decodes:  # and crops, scales and mirrors
            video = own[0].gpu() if device_id is not None else own[0]
        else:
            video = _from_either(own, size, device_id)
        if augmentation.policy and size is not None:
            video = rand_augmented(video, drawn[0], drawn[1], augmentation.policy.number, size)
        if augmentation.erasing:
            anchor, shape = drawn[-2:]
            box = {"anchor": anchor, "shape": shape, "normalized": True, "axis_names": "HW"}
            video = fn.erase(video, **box, fill_value=FILL)
        return meta, video

    pipeline = clips(
        batch_size=source.stream.batches.batch_size,
        device_id=device_id,
        num_threads=1 if device_id is None else threads,
        prefetch_queue_depth=prefetch,
        exec_dynamic=True,  # an output stays valid for as long as a tensor made from it lives
    )
    pipeline.build()
    return pipeline
