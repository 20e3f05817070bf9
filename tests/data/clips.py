"""Test clips whose every frame carries its own number as a barcode, so that frame exactness shows through lossy coding.

The number is written in `NUMBER_BITS` black or white blocks along the top edge; below it a slowly moving ramp gives the
encoder motion to predict, and the left half is red while the right half is blue, so that flips and rotations show too.
"""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np

NUMBER_BITS = 8


def barcode_frames(num_frames: int, height: int, width: int, first: int = 0) -> np.ndarray:
    """uint8 [T, H, W, 3]; frame t carries the number `first + t`."""
    band = height // 4
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    ramp = np.arange(width)[None, :] + 2 * np.arange(height)[:, None]
    for t, frame in enumerate(frames):
        frame[...] = ((ramp + 3 * t) % 64 + 64)[..., None]
        frame[:, : width // 2, 0] = 200
        frame[:, width // 2 :, 2] = 200
        for bit in range(NUMBER_BITS):
            left, right = bit * width // NUMBER_BITS, (bit + 1) * width // NUMBER_BITS
            frame[:band, left:right] = 255 * (((first + t) >> bit) & 1)
    return frames


def frame_numbers(video: np.ndarray) -> list[int]:
    """The numbers carried by the frames of `video` (uint8 [T, H, W, 3])."""
    _, height, width, _ = video.shape
    numbers = []
    for frame in video:
        bits = 0
        for bit in range(NUMBER_BITS):
            left, right = bit * width // NUMBER_BITS, (bit + 1) * width // NUMBER_BITS
            block = frame[2 : height // 4 - 2, left + 2 : right - 2]
            bits |= int(block.mean() > 127) << bit
        numbers.append(bits)
    return numbers


@dataclass(frozen=True)
class Encoding:
    """How `write_clip` turns pictures into a file."""

    codec: str = "libx264"
    options: Mapping[str, str] = field(default_factory=dict)
    """Of the encoder."""
    container_options: Mapping[str, str] = field(default_factory=dict)
    pix_fmt: str = "yuv420p"
    gop: int = 8
    fps: int = 8
    pts: Sequence[int] | None = None
    """One per frame, in 1/(1000 fps) s: makes the frame rate variable."""
    rotation: int = 0
    """Degrees counterclockwise that bring the picture upright, for the header of an mp4 alone."""


def write_clip(
    path: Path,
    num_frames: int = 16,
    height: int = 64,
    width: int = 96,
    *,
    first: int = 0,
    frames: np.ndarray | None = None,
    **encoding: Any,
) -> Path:
    """Write a barcode clip, or the given `frames` (uint8 [T, H, W, 3]), with the fields of `Encoding` as keywords."""
    how = Encoding(**encoding)
    pictures = barcode_frames(num_frames, height, width, first) if frames is None else frames
    with av.open(str(path), "w", options=dict(how.container_options)) as container:
        # of x264's code for AVX-512 the same frames come out with other bytes now and then
        same = {"x264-params": "cpu-independent=1"} if how.codec == "libx264" else {}
        options = {"threads": "1", **same, **how.options}
        stream: Any = container.add_stream(how.codec, rate=how.fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], how.pix_fmt
        stream.gop_size = how.gop
        tick = Fraction(1, how.fps if how.pts is None else how.fps * 1000)
        stream.codec_context.time_base = tick
        for t, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = t if how.pts is None else how.pts[t], tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if how.rotation:
        _set_mp4_rotation(path, how.rotation)
    return path


def remux(path: Path, sources: Sequence[bytes], frames: int, change: Callable[[Any], Any]) -> None:
    """Copy the packets of several files of so many frames each, one after the other, each changed, or replaced by what
    `change` returns."""
    with TemporaryDirectory() as folder, av.open(str(path), "w") as write:
        copy: Any = None
        for number, data in enumerate(sources):
            part = Path(folder) / f"{number}{path.suffix}"
            part.write_bytes(data)
            with av.open(str(part)) as read:
                stream = read.streams.video[0]
                copy = copy or write.add_stream_from_template(stream)
                later = int(number * frames / stream.average_rate / stream.time_base)
                for packet in read.demux(stream):
                    if packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + later, packet.dts + later, copy
                        write.mux(change(packet) or packet)


def not_coded(packet: Any, width: int) -> Any:
    """A packet of MPEG-4 video in place of another that says "not coded" (ISO/IEC 14496-2, 6.2.5); of a keyframe, that
    itself. width: bits of a time in it."""
    if packet.is_keyframe:
        return packet
    data = bytes(packet)
    at = data.index(b"\0\0\1\xb6") + 4
    bits = "".join(f"{byte:08b}" for byte in data[at : at + 8])
    end = bits.index("0", 2) + 2 + width  # kind of picture, seconds, marker, ticks
    bits = bits[: end + 1] + "0"
    bits += "0" + "1" * (-(len(bits) + 1) % 8)
    empty = av.Packet(data[:at] + int(bits, 2).to_bytes(len(bits) // 8, "big"))
    empty.pts, empty.dts, empty.time_base, empty.stream = packet.pts, packet.dts, packet.time_base, packet.stream
    return empty


def write_lines(path: Path, *rows: Any) -> Path:
    """A list of these lines: texts as they are, everything else as JSON."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def write_audio(path: Path) -> Path:
    """An mp4 that holds one second of silence and no video."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 16000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for i in range(16):
            frame.pts = 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def truncate(source: Path, target: Path, fraction: float) -> Path:
    """Copy the first `fraction` of the bytes of `source` to `target`."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * fraction)])
    return target


def damage_packet(path: Path, index: int) -> None:
    """Overwrite one packet of a VP9 file, which then cannot be decoded, nor what depends on it."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][index]
    path.write_bytes(path.read_bytes().replace(bytes(packet), b"\xff" * packet.size))


def decode_sequentially(path: str | Path, **conversion: Any) -> np.ndarray:
    """Every frame in order by PyAV's plain loop, as coded (unrotated): uint8 [T, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24", **conversion) for frame in container.decode(video=0)])


def decode_upright(path: str | Path, **conversion: Any) -> np.ndarray:
    """As `decode_sequentially`, turned as the rotation metadata says."""
    with av.open(str(path)) as container:
        turns = next(container.decode(video=0)).rotation // 90
    return np.rot90(decode_sequentially(path, **conversion), turns, (1, 2))


def _set_mp4_rotation(path: Path, degrees: int) -> None:
    a, b = {90: (0, -1), 180: (-1, 0), 270: (0, 1)}[degrees]
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
