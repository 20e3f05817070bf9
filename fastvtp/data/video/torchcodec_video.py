"""Frames decoded by torchcodec, of videos that PyAV opens and lists.

PyAV's table of the frames says how many there are and when each is shown, so that spans, sampling and indices are the
same with either decoder; torchcodec decodes, and what it hands out is compared with the table.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastvtp.data.sampling import CropWindow
from fastvtp.data.video.decoding import Video, VideoDecodeError
from fastvtp.data.video.pictures import Turn
from fastvtp.errors import UserError

_SAME_TIME = 2e-3  # seconds; containers round times to milliseconds


def require_torchcodec() -> str:
    """Return the version of torchcodec.

    Raises:
        UserError: it is not installed, or does not find what it needs.
    """
    try:
        import torchcodec.decoders  # pyright: ignore[reportMissingImports] # importing it loads FFmpeg's libraries
    except Exception as error:  # its loading of libraries raises RuntimeError, OSError and more
        why = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise UserError(
            "decoder='torchcodec' needs torchcodec of a version that fits torch, and FFmpeg's shared libraries on the "
            f"system: pip install torchcodec ({why})"
        ) from None
    return torchcodec.__version__


class TorchCodecVideo(Video):
    """An opened video whose frames torchcodec decodes; otherwise a `Video`. It imports torch.

    PyAV reads what torchcodec cannot: videos that are not one file, as a folder of frames, or are to be shown mirrored,
    files that it does not open, and those of which it hands out other frames than the ones asked for, as of many
    MPEG-TS files. What it decodes, it does not tell to be damaged, so with damaged="keep" PyAV reads all.

    Args:
        location: a location, or the bytes of a file.
        aspect, damaged: see `Video`.
        device: of torchcodec's decoder, "cpu" or a CUDA device; frames come to the host either way.

    Attributes:
        left_to_pyav: the kind of files that PyAV has to read, once this turned out to be one; otherwise empty.

    Raises:
        VideoDecodeError: as `Video`.
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | bytes,
        *,
        aspect: str = "display",
        damaged: str = "refuse",
        device: str = "cpu",
    ):
        super().__init__(location, aspect=aspect, damaged=damaged)
        self.left_to_pyav = "all files, as damaged='keep' is not torchcodec's" if damaged == "keep" else ""
        self._decoder: Any = None
        self._file: Any = None
        try:
            if self._source.turn.is_mirrored:
                self.left_to_pyav = "videos to be shown mirrored, which torchcodec does not do"
            if not self.left_to_pyav:
                self._open_again(location, device)
        except BaseException:
            self.close()
            raise

    def _open_again(self, location: str | os.PathLike[str] | bytes, device: str) -> None:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

        if isinstance(location, bytes):
            opened: Any = location
        elif self.stored is None:
            self.left_to_pyav = "videos that are not one file, which torchcodec does not read"
            return
        else:
            opened = self._file = self.stored.open()
        try:
            how = {"dimension_order": "NHWC", "seek_mode": "exact", "num_ffmpeg_threads": 1, "device": device}
            self._decoder = VideoDecoder(opened, **how)
        except Exception as error:  # RuntimeError and ValueError, of its C++ part
            self.left_to_pyav = f"files that torchcodec does not open ({_gist(error)})"
            return
        if len(self._decoder) != self.num_frames:
            self._give_up()

    def _give_up(self) -> None:
        self._decoder = None
        container = self._source.container
        self.left_to_pyav = f"files of the format {container}, of which torchcodec hands out other frames"

    def __enter__(self) -> TorchCodecVideo:
        return self

    def close(self) -> None:
        self._decoder = None
        if self._file is not None:
            self._file.close()
        super().close()

    def read_windows(
        self,
        indices: Sequence[int] | np.ndarray,
        windows: Sequence[CropWindow | None],
        size: tuple[int, int] | None = None,
    ) -> list[np.ndarray]:
        """Decode frames once and show several parts of them, see `Video.read`."""
        wanted = [int(index) for index in indices]
        within = wanted and min(wanted) >= 0 and max(wanted) < self.num_frames
        frames = self._decoded_frames(sorted(set(wanted))) if within and self._decoder is not None else None
        if frames is None:
            return super().read_windows(indices, windows, size)
        return [self._drawn(frames, wanted, window, size, Turn()) for window in windows]

    def _decoded_frames(self, indices: list[int]) -> dict[int, Any] | None:
        """Return the frames, upright; None where they are not the ones asked for."""
        from av import VideoFrame

        try:
            batch = self._decoder.get_frames_at(indices)
        except Exception as error:  # RuntimeError and ValueError, of its C++ part
            raise VideoDecodeError(self._name, f"damaged ({_gist(error)})") from None
        expected = self.seconds[indices] + (self._decoder.metadata.begin_stream_seconds or 0.0)
        if np.abs(expected - batch.pts_seconds.cpu().numpy()).max() > _SAME_TIME:
            self._give_up()
            return None
        pictures = batch.data.cpu().numpy()
        return {index: VideoFrame.from_ndarray(rgb, "rgb24") for index, rgb in zip(indices, pictures, strict=True)}


def _gist(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
