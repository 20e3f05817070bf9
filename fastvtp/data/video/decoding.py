"""Frame-exact video decoding with PyAV, for any codec libav knows: a frame's index is its place in presentation order,
the order in which a plain decoding loop hands frames out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from fastvtp.data.locations import without_secrets
from fastvtp.data.reading import ASPECTS, DAMAGED
from fastvtp.data.sampling import CropWindow
from fastvtp.data.storage.finding import StoredFile, UnreadableError, find_file
from fastvtp.data.video.errors import VideoDecodeError
from fastvtp.data.video.frame_folder import FrameFolder
from fastvtp.data.video.frame_reader import FrameReader
from fastvtp.data.video.frame_times import FrameTimes, frame_times, nearness
from fastvtp.data.video.packet_reader import NotAsListedError, NoVideoStreamError, why_not_opened
from fastvtp.data.video.pictures import PictureMaker, Turn, displayed_size, stretch_of, whole_box

__all__ = ["Video", "VideoDecodeError", "VideoInfo", "decode_frames", "probe"]

_WHOLE = CropWindow(0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        frames: number of frames.
        height, width: size of the upright picture in pixels, in its displayed proportions unless asked otherwise.
        fps: mean rate in frames per second.
        codec, pix_fmt: as libav names them.
        rotation: counterclockwise turn (0, 90, 180 or 270 degrees) that brings the coded picture upright.
        mirrored: whether left and right change places after that turn.
        stretch: how much wider than high a pixel is to be shown (sample aspect ratio), 1 for square ones.
        interlaced: whether the first frame is coded as two fields of different moments; they are not woven apart.
        cut: what is missing of a file that broke off and still has frames to show, in one line; None where nothing is
            known to be. Matroska, AVI and fragmented mp4 say how long they are, other containers do not.
        colorspace, full_range: libav's number of it (2, not said, is BT.601), and whether luma goes from 0 to 255.
        container: the file format, as libav names it.
    """

    frames: int
    height: int
    width: int
    fps: float
    codec: str
    pix_fmt: str
    rotation: int
    mirrored: bool = False
    stretch: float = 1.0
    interlaced: bool = False
    cut: str | None = None
    colorspace: int = 2
    full_range: bool = False
    container: str = ""


class Video:
    """An opened video; a context manager.

    What the header of an mp4 or mov says is enough to reach any frame: a clip of a video of two hours takes a few
    milliseconds more than one of a video of seconds, a fifth of its time at 340x256. The index of an AVI is enough as
    well, if no picture of its codec is shown in another order than it is decoded in, or its packets tell (MPEG-4). All
    other containers do not say how many frames there are: their packets are read once, which takes as long as reading
    the file does, and where they do not say either when each frame is shown (H.264 in AVI) all frames are decoded once.
    This is remembered for the files a process used last.

    Args:
        location: a location (`fastvtp.data.locations`) or path, or the bytes of a file. Of a folder the pictures in it
            (.jpg, .png, .webp, .bmp, .tif) are the frames, ordered by the numbers in their names.
        aspect: "display" shows pictures in the proportions they are meant for, that is widened (or narrowed) by their
            sample aspect ratio where pixels are not square; "coded" keeps stored pixels.
        damaged: "refuse" raises for a frame that the decoder says is damaged; "keep" hands it out as a plain decoding
            loop of one thread shows it (as far as it can be told from the seven keyframes before, thousands of frames
            on), and in place of one that cannot be decoded at all the one before it.
        playlists: whether files are opened that name other files or addresses to read, such as m3u8.
        fps: frames per second of a folder; all else says so itself.

    Attributes:
        stored: the file that it was opened from; None of bytes and of a folder.
        num_frames: frames that can be asked for. A file that broke off without an index that lists all frames counts
            those that are there, and says so in a warning (`VideoInfo.cut`); an mp4 whose header lists frames behind
            its end is refused unless `damaged` is "keep".

    Raises:
        VideoDecodeError: the file is missing, empty, truncated, no regular file, not a video, without a video stream,
            or a playlist.
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | bytes,
        *,
        aspect: str = "display",
        damaged: str = "refuse",
        playlists: bool = False,
        fps: float = 25.0,
    ):
        if aspect not in ASPECTS or damaged not in DAMAGED:
            raise ValueError(f"expected aspect in {ASPECTS} and damaged in {DAMAGED}, got {aspect!r} and {damaged!r}")
        self._name = "<bytes>" if isinstance(location, bytes) else os.fspath(location)
        self._pictures = PictureMaker()
        keeps_damaged = damaged == "keep"
        self._source: FrameReader | FrameFolder
        self.stored: StoredFile | None = None
        if not isinstance(location, bytes) and os.path.isdir(self._name):
            self._source = FrameFolder(self._name, Fraction(fps), keeps_damaged=keeps_damaged)
        else:
            if isinstance(location, bytes):
                source: StoredFile | bytes = location
            else:
                source = self.stored = self._found()
            with self._errors_named(opening=source):
                self._source = FrameReader(source, self._name, keeps_damaged=keeps_damaged, playlists=playlists)
        try:
            self._stretch = Fraction(1) if aspect == "coded" else stretch_of(self._source.stretch)
            self.num_frames = self._source.count
            if self.num_frames == 0:
                raise VideoDecodeError(self._name, "no frames")
        except BaseException:
            self.close()
            raise

    def _found(self) -> StoredFile:
        try:
            return find_file(self._name)
        except UnreadableError as error:
            raise VideoDecodeError(self._name, error.reason) from None

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._source.close()

    @property
    def damaged_frames(self) -> set[int]:
        """Indices of the frames that were handed out although they are damaged, with damaged="keep"."""
        return set(self._source.damaged)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the upright picture, in its displayed proportions with aspect "display".

        It is what the container says. Frames of another size, where it changes within a video, are resized to it
        unless a size is asked for.
        """
        return displayed_size(self._source.height, self._source.width, self._stretch, self._source.turn)

    @property
    def frame_reader(self) -> FrameReader | None:
        """What reads its packets and decodes them; None of a folder of pictures."""
        return self._source if isinstance(self._source, FrameReader) else None

    @property
    def keyframes(self) -> np.ndarray:
        """Indices of the frames that decoding can start from, ascending, int64; those at least that are known
        without decoding."""
        return self._source.keyframes

    @property
    def seconds(self) -> np.ndarray:
        """When each frame is shown, in seconds from the first one: float64 `[num_frames]`, rising.

        Raises:
            VideoDecodeError: the file says neither when its frames are shown nor how many a second.
        """
        ticks, tick = self._timeline()
        return ticks * tick.numerator / tick.denominator

    def read(
        self,
        indices: Sequence[int] | np.ndarray,
        window: CropWindow | None = None,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Decode frames by their index in presentation order, in any order, repeats allowed.

        Colours are converted by the matrix and range that the video says (BT.601, BT.709, BT.2020; limited or full),
        and where it says none as libav does, as BT.601 of limited range; high dynamic range is not mapped. Scaling is
        libswscale's bilinear one, whose kernel widens with the reduction, so that nothing aliases. A part that is
        scaled begins and ends on stored pixels that share no chroma with others, at most one pixel from where the
        window does in 4:2:0; without scaling it does on the nearest pixel.

        Args:
            indices: the frames.
            window: the part of the upright, displayed picture, as fractions of its height and width; `flip` mirrors.
                None: the whole.
            size: height and width in pixels to which that part is scaled. None: it is not, but for frames of other
                size than `size` says.

        Returns:
            uint8 `[T, h, w, 3]` RGB, upright (rotation and mirroring that the video asks for are applied).

        Raises:
            IndexError: an index outside `[0, num_frames)`.
            VideoDecodeError: a frame asked for cannot be decoded, or is damaged and `damaged` is "refuse".
        """
        return self.read_windows(indices, [window], size)[0]

    def read_windows(
        self,
        indices: Sequence[int] | np.ndarray,
        windows: Sequence[CropWindow | None],
        size: tuple[int, int] | None = None,
    ) -> list[np.ndarray]:
        """Decode frames once and show several parts of them: for each window what `read` returns."""
        wanted = [int(index) for index in indices]
        if not wanted or min(wanted) < 0 or max(wanted) >= self.num_frames:
            name = without_secrets(self._name)
            raise IndexError(f"{name}: expected frame indices in [0, {self.num_frames}), got {wanted}")
        with self._errors_named():
            frames = self._source.decode(sorted(set(wanted)))
            return [self._drawn(frames, wanted, window, size) for window in windows]

    def _drawn(
        self,
        frames: Mapping[int, Any],
        wanted: Sequence[int],
        window: CropWindow | None,
        size: tuple[int, int] | None,
        turn: Turn | None = None,
    ) -> np.ndarray:
        turn, window, whole = turn or self._source.turn, window or _WHOLE, self.size
        y0, x0, y1, x1 = whole_box(window, *whole)
        clip, places = np.empty((len(wanted), *(size or (y1 - y0, x1 - x0)), 3), np.uint8), {}
        for place, index in enumerate(wanted):
            if index in places:
                clip[place] = clip[places[index]]
            else:
                self._pictures.draw(frames[index], turn, window, whole, clip[place])
                places[index] = place
        return clip

    def stream(self, frames: range, size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
        """Decode consecutive frames one after another, in memory that does not grow with their number.

        Args:
            frames: indices with a step of 1.
            size: as of `read`.

        Yields:
            uint8 `[h, w, 3]` RGB, as `read` gives it.

        Raises:
            IndexError: an index outside `[0, num_frames)`.
            VideoDecodeError: a frame cannot be decoded; those before it have come out.
        """
        if frames.step != 1 or not 0 <= frames.start <= frames.stop <= self.num_frames:
            name = without_secrets(self._name)
            raise IndexError(f"{name}: expected consecutive frames in [0, {self.num_frames}), got {frames}")
        turn, whole = self._source.turn, self.size
        with self._errors_named():
            for frame in self._source.walk(frames):
                picture = np.empty((*(size or whole), 3), np.uint8)
                self._pictures.draw(frame, turn, _WHOLE, whole, picture)
                yield picture

    def info(self) -> VideoInfo:
        """Describe the video; decodes its first frame, which also proves that it can be decoded.

        Raises:
            VideoDecodeError: the first frame cannot be decoded.
        """
        with self._errors_named():
            frame = self._source.decode([0])[0]
        turn = self._source.turn
        return VideoInfo(
            frames=self.num_frames,
            height=self.size[0],
            width=self.size[1],
            fps=float(self._source.rate or 0),
            codec=self._source.codec,
            pix_fmt=frame.format.name,
            rotation=turn.degrees,
            mirrored=turn.is_mirrored,
            stretch=float(stretch_of(self._source.stretch)),
            interlaced=frame.interlaced_frame,
            cut=self._source.cut,
            colorspace=int(frame.colorspace),
            full_range=frame.color_range == 2 or frame.format.name.startswith("yuvj"),
            container=self._source.container,
        )

    def decode_all(self) -> int:
        """Decode every frame and keep none; returns their number.

        Raises:
            VideoDecodeError: the video is damaged somewhere.
        """
        with self._errors_named():
            return self._source.decode_all()

    def frames_within(self, start: float | None, end: float | None) -> range:
        """Return the indices of the frames shown from `start` to before `end`, seconds from the first frame.

        A frame belongs to the span that its presentation time lies in, at a variable rate too: spans that touch share
        no frame and lose none. A bound near the time of a frame counts as that time, see `nearness`.

        Args:
            start: None, from the first frame on.
            end: None, to the last frame.

        Returns:
            A range, empty where no frame is shown in between.

        Raises:
            VideoDecodeError: the file says neither when its frames are shown nor how many a second.
        """
        ticks, tick = self._timeline()
        near = nearness(tick)

        def first_from(seconds: float) -> int:
            return int(np.searchsorted(ticks, math.ceil((Fraction(seconds) - near) / tick)))

        return range(0 if start is None else first_from(start), len(ticks) if end is None else first_from(end))

    def frame_times(self, shown: range | None = None) -> FrameTimes:
        """Return when the frames `shown`, by default all, are on screen.

        Raises:
            VideoDecodeError: the file says neither when its frames are shown nor how many a second.
        """
        rate = self._source.rate
        return frame_times(*self._timeline(), rate, range(self.num_frames) if shown is None else shown)

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last, which counts as long as the others are in the mean.

        Raises:
            VideoDecodeError: the file says neither when its frames are shown nor how many a second.
        """
        ticks, tick = self._timeline()
        if len(ticks) > 1:
            return float(int(ticks[-1]) * tick * len(ticks) / (len(ticks) - 1))
        rate = self._source.rate
        return float(1 / rate) if rate else 0.0

    def _timeline(self) -> tuple[np.ndarray, Fraction]:
        """Return when each frame is shown, in ticks from the first one, and seconds in a tick."""
        times, rate = self._source.times, self._source.rate
        if times is not None:
            return times - times[0], self._source.tick
        if not rate:
            raise VideoDecodeError(self._name, "says neither when its frames are shown nor how many a second")
        return np.arange(self.num_frames), 1 / rate

    @contextmanager
    def _errors_named(self, opening: Any = None) -> Iterator[None]:
        from av.error import FFmpegError

        try:
            yield
        except NotAsListedError:
            raise VideoDecodeError(self._name, "its packets change from one reading to the next") from None
        except NoVideoStreamError as error:
            raise VideoDecodeError(self._name, str(error)) from None
        except UnreadableError as error:  # a store that stops answering
            raise VideoDecodeError(self._name, error.reason) from None
        except (FFmpegError, OSError, IndexError) as error:  # IndexError: PyAV, on a stream that damage made up
            reason = getattr(error, "strerror", None) or str(error)
            reason = f"damaged ({reason})" if opening is None else why_not_opened(opening, reason)
            raise VideoDecodeError(self._name, reason) from None


def probe(location: str | os.PathLike[str]) -> VideoInfo:
    """Describe a video file; decodes its first frame.

    Raises:
        VideoDecodeError: the file cannot be decoded.
    """
    with Video(location) as video:
        return video.info()


def decode_frames(location: str | os.PathLike[str] | bytes, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Decode frames of a location or of a file's bytes: uint8 `[T, H, W, 3]` RGB, upright; see `Video.read`.

    Raises:
        IndexError: an index outside `[0, number of frames)`.
        VideoDecodeError: the file cannot be decoded.
    """
    with Video(location) as video:
        return video.read(indices)
