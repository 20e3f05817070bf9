"""Files as data sets of the wild hold them, each damaged, lying or no video at all, written by kind and seed.

A kind is a function that writes one file from a sound clip and a generator of random numbers, so that a kind gives as
many different files as are asked for. What a reader owes each is in `Hostile.duty`.
"""

import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np

from tests.data.clips import barcode_frames, not_coded, remux, write_audio, write_clip

NUM_FRAMES, HEIGHT, WIDTH = 24, 48, 80
REFUSE, PLAY, EITHER = "refuse", "play", "either"
B_FRAMES = {"x264-params": "bframes=2:b-adapt=0:scenecut=0", "preset": "ultrafast"}
VP9 = {"deadline": "realtime", "cpu-used": "8"}
# How the clips are encoded from which the others are made.
SOUND: dict[str, dict[str, Any]] = {
    "end.mp4": {"options": B_FRAMES},
    "start.mp4": {"options": B_FRAMES, "container_options": {"movflags": "faststart"}},
    "fragments.mp4": {"options": B_FRAMES, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.mkv": {"options": B_FRAMES},
    "vp9.webm": {"codec": "libvpx-vp9", "options": VP9},
    "h264.ts": {"options": B_FRAMES},
    "mpeg2.ts": {"codec": "mpeg2video", "fps": 25},
    "mpeg4.avi": {"codec": "mpeg4"},
    "vp8.ivf": {"codec": "libvpx", "options": VP9},
    "refresh.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}},
    "moving.gif": {"codec": "gif", "pix_fmt": "bgr8"},
}
Random = np.random.Generator


@dataclass(frozen=True)
class Hostile:
    """A file of a kind. Duty: it must be refused, must play, or may be either where it plays as a plain loop does.

    source: which of `SOUND` it was made from by damage to its bytes, if so.
    """

    kind: str
    path: str
    duty: str
    source: str | None = None


@dataclass(frozen=True)
class _Kind:
    suffix: str
    duty: str
    write: Callable[[Path, Random], object]


KINDS: dict[str, _Kind] = {}


def write_hostile(folder: Path, count: int, seed: int = 0) -> list[Hostile]:
    """`count` files of all kinds in turn. Left out: a file without read permission where there is none for root."""
    kinds = [name for name in KINDS if name != "without permission" or os.geteuid() != 0]
    written = []
    for number in range(count):
        name = kinds[number % len(kinds)]
        kind = KINDS[name]
        path = folder / f"{number:03}_{name.replace(' ', '_')}{kind.suffix}"
        made = kind.write(path, np.random.default_rng((seed, number)))
        source = getattr(kind.write, "source", None)
        written.append(Hostile(name, str(made if isinstance(made, Path) else path), kind.duty, source))
    return written


def write_sound(folder: Path) -> dict[str, str]:
    """The clips of `SOUND` as files; paths by name."""
    folder.mkdir()
    for name in SOUND:
        (folder / name).write_bytes(sound(name))
    return {name: str(folder / name) for name in SOUND}


@lru_cache(maxsize=64)
def sound(name: str, first: int = 0, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """The bytes of a clip of `SOUND`, frame t of which carries the number first + t."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_clip(path, NUM_FRAMES, height, width, first=first, **SOUND[name])
        return path.read_bytes()


def _kind(name: str, suffix: str = ".mp4", duty: str = EITHER) -> Callable[[Any], None]:
    def register(write: Callable[[Path, Random], object]) -> None:
        KINDS[name] = _Kind(suffix, duty, write)

    return register


# --- damage to the bytes, whatever they are


def _flipped(data: bytearray, rng: Random) -> None:
    for place in rng.integers(len(data), size=int(rng.integers(1, 6))):
        data[place] ^= 1 << rng.integers(8)


def _cut(data: bytearray, rng: Random) -> None:
    del data[int(len(data) * rng.uniform(0.1, 0.98)) :]


def _swapped(data: bytearray, rng: Random) -> None:
    size = len(data) // 16
    a, b = sorted(rng.choice(15, 2, replace=False) * size + int(rng.integers(size // 2)))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def _zeroed(data: bytearray, rng: Random) -> None:
    size = int(rng.integers(16, len(data) // 8))
    start = int(rng.integers(len(data) - size))
    data[start : start + size] = bytes(size)


def _lost(data: bytearray, rng: Random) -> None:
    for _ in range(int(rng.integers(1, 3))):
        start = 188 * int(rng.integers(4, len(data) // 188))
        del data[start : start + 188]


def _damaged(damage: Callable[[bytearray, Random], object], source: str) -> Any:
    def write(path: Path, rng: Random) -> None:
        data = bytearray(sound(source))
        damage(data, rng)
        path.write_bytes(data)

    write.source = source
    return write


_DAMAGES = {"flipped bits": _flipped, "cut": _cut, "swapped blocks": _swapped, "zero filled": _zeroed}
_DAMAGED = ("start.mp4", "h264.mkv", "vp9.webm", "h264.ts", "mpeg4.avi")
for _words, _damage in _DAMAGES.items():
    for _name in _DAMAGED:
        _kind(f"{_words} {Path(_name).suffix[1:]}", Path(_name).suffix)(_damaged(_damage, _name))
_kind("cut index at the end", duty=REFUSE)(_damaged(_cut, "end.mp4"))
_kind("cut fragments")(_damaged(_cut, "fragments.mp4"))
_kind("lost packets", ".ts")(_damaged(_lost, "mpeg2.ts"))


# --- headers that lie


def _at(data: bytes, box: bytes) -> int:
    """Where the content of the first box of this name begins."""
    return data.index(box) + 4


def _lie(name: str, duty: str = EITHER) -> Callable[[Any], Any]:
    """Register a function that changes the bytes of an mp4 that begins with its index."""
    return lambda change: _kind(name, duty=duty)(_damaged(change, "start.mp4"))


@_lie("flipped bits in the index")
def _flipped_index(data: bytearray, rng: Random) -> None:
    start, size = _at(data, b"moov"), struct.unpack_from(">I", data, data.index(b"moov") - 4)[0]
    for place in start + rng.integers(size - 8, size=3):
        data[place] ^= 1 << rng.integers(8)


@_lie("number of samples")
def _sample_count(data: bytearray, rng: Random) -> None:
    struct.pack_into(">I", data, _at(data, b"stsz") + 8, int(rng.choice([0, 1, 25, 10**6, 2**31 - 1, 2**32 - 1])))


@_lie("sizes of samples")
def _sample_sizes(data: bytearray, rng: Random) -> None:
    sizes = _at(data, b"stsz") + 12
    for number in rng.choice(NUM_FRAMES, 4, replace=False):
        struct.pack_into(">I", data, sizes + 4 * int(number), int(rng.choice([0, 5, 2**24, 2**31 - 1, 2**32 - 1])))


@_lie("negative composition offsets")
def _composition(data: bytearray, rng: Random) -> None:
    start = _at(data, b"ctts")
    data[start] = 1
    (count,) = struct.unpack_from(">I", data, start + 4)
    for number in range(count):
        struct.pack_into(">i", data, start + 12 + 8 * number, int(rng.integers(-(2**31), 2**12)))


@_lie("chunks past the end")
def _chunks(data: bytearray, rng: Random) -> None:
    start = _at(data, b"stco")
    (count,) = struct.unpack_from(">I", data, start + 4)
    for number in range(count):
        struct.pack_into(">I", data, start + 8 + 4 * number, len(data) + int(rng.integers(2**31)))


@_lie("durations")
def _durations(data: bytearray, rng: Random) -> None:
    duration = int(rng.choice([0, 1, 2**31, 2**32 - 2]))
    for box, place in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16)):
        struct.pack_into(">I", data, _at(data, box) + place, duration)


@_lie("no timescale")
def _timescale(data: bytearray, rng: Random) -> None:
    for box in (b"mvhd", b"mdhd")[: int(rng.integers(1, 3))]:
        struct.pack_into(">I", data, _at(data, box) + 12, 0)


@_lie("times of samples")
def _times(data: bytearray, rng: Random) -> None:
    struct.pack_into(">I", data, _at(data, b"stts") + 12, int(rng.choice([0, 2**31 - 1, 2**32 - 1])))


@_lie("keyframes that are none")
def _keyframes(data: bytearray, rng: Random) -> None:
    start = _at(data, b"stss")
    (count,) = struct.unpack_from(">I", data, start + 4)
    numbers = sorted(rng.choice(np.arange(2, NUM_FRAMES), count - 1, replace=False))
    struct.pack_into(f">{count}I", data, start + 8, 1, *map(int, numbers))


@_lie("sizes of boxes")
def _boxes(data: bytearray, rng: Random) -> None:
    box = [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"mdat"][rng.integers(7)]
    struct.pack_into(">I", data, data.index(box) - 4, int(rng.choice([0, 7, 9, 2**16, 2**31 - 1])))


@_lie("display matrix of zeros", duty=PLAY)
def _matrix(data: bytearray, rng: Random) -> None:
    start = _at(data, b"tkhd") + 40
    data[start : start + 36] = bytes(36)


def _matroska(data: bytearray, rng: Random) -> None:
    for element in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75")[: int(rng.integers(1, 3))]:
        size = data.index(element) + 4  # the first byte says how many follow
        for place in range(size + 1, size + 9 - int(data[size]).bit_length()):
            data[place] = rng.integers(256)


_kind("sizes of elements", ".mkv")(_damaged(_matroska, "h264.mkv"))


def _index_of_avi(data: bytearray, rng: Random) -> None:
    start = data.index(b"idx1") + 8
    for entry in range(start, len(data) - 15, 16):
        struct.pack_into("<2I", data, entry + 8, *map(int, rng.integers(2**32, size=2)))


_kind("index of an avi", ".avi")(_damaged(_index_of_avi, "mpeg4.avi"))
_kind("without a frame count", ".ivf", PLAY)(_damaged(lambda data, _: struct.pack_into("<I", data, 24, 0), "vp8.ivf"))


# --- streams that are not as usual


@_kind("times as decoded")
def _pts_of_dts(path: Path, rng: Random) -> None:
    remux(path, [sound("end.mp4")], NUM_FRAMES, lambda packet: setattr(packet, "pts", packet.dts))


@_kind("size changes inside", ".webm", PLAY)
def _size_change(path: Path, rng: Random) -> None:
    parts = [sound("vp9.webm"), sound("vp9.webm", NUM_FRAMES, HEIGHT + 16, WIDTH - 16)]
    remux(path, parts, NUM_FRAMES, lambda packet: None)


@_kind("spliced", ".ts", PLAY)
def _spliced(path: Path, rng: Random) -> None:
    path.write_bytes(sound("h264.ts") + sound("h264.ts", NUM_FRAMES)[188 * int(rng.integers(3)) :])


_kind("intra refresh", duty=PLAY)(lambda path, rng: path.write_bytes(sound("refresh.mp4")))
_kind("renamed gif")(lambda path, rng: path.write_bytes(sound("moving.gif")))


# --- no videos


def _picture() -> bytes:
    codec: Any = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = WIDTH, HEIGHT, "rgb24", Fraction(1)
    (packet,) = codec.encode(av.VideoFrame.from_ndarray(barcode_frames(1, HEIGHT, WIDTH)[0], format="rgb24"))
    return bytes(packet)


@_kind("cover art alone", ".flac")
def _cover(path: Path, rng: Random) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("flac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    data, picture = path.read_bytes(), _picture()
    said = struct.pack(">II9sI4I", 3, 9, b"image/png", 0, WIDTH, HEIGHT, 24, 0) + struct.pack(">I", len(picture))
    block = struct.pack(">I", 6 << 24 | len(said) + len(picture)) + said + picture
    path.write_bytes(data[:42] + block + data[42:])  # "fLaC" and the block of stream information


@_kind("playlist of a broadcast", ".m3u8", REFUSE)
def _broadcast(path: Path, rng: Random) -> None:
    part = path.with_suffix(".ts")
    part.write_bytes(sound("h264.ts"))
    path.write_text(f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{part.name}\n")


@_kind("playlist of itself", ".m3u8", REFUSE)
def _of_itself(path: Path, rng: Random) -> None:
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{path.name}\n")


@_kind("list of other files", duty=REFUSE)
def _concat(path: Path, rng: Random) -> None:
    part = path.with_suffix(".ts")
    part.write_bytes(sound("h264.ts"))
    path.write_text(f"ffconcat version 1.0\nfile '{part.name}'\n")


@_kind("description of a session", ".sdp", REFUSE)
def _session(path: Path, rng: Random) -> None:
    address = "IN IP4 127.0.0.1"
    path.write_text(f"v=0\no=- 0 0 {address}\ns=x\nc={address}\nt=0 0\nm=video 52001 RTP/AVP 96\na=rtpmap:96 H264/9\n")


def _write(content: Callable[[Random], bytes]) -> Any:
    return lambda path, rng: path.write_bytes(content(rng))


_kind("renamed png")(_write(lambda rng: _picture()))
_kind("empty", duty=REFUSE)(_write(lambda rng: b""))
_kind("one byte", duty=REFUSE)(_write(lambda rng: rng.bytes(1)))
_kind("text", duty=REFUSE)(_write(lambda rng: b"not a film, a letter\n" * int(rng.integers(1, 500))))
_kind("page of an error", duty=REFUSE)(_write(lambda rng: b"<!DOCTYPE html><html><h1>404 Not Found</h1></html>\n"))
_kind("encrypted", duty=REFUSE)(_write(lambda rng: sound("start.mp4")[:32] + rng.bytes(20_000)))
_kind("random bytes", duty=REFUSE)(_write(lambda rng: rng.bytes(5000)))
_kind("audio alone", duty=REFUSE)(lambda path, rng: write_audio(path) and None)
_kind("pipe", duty=REFUSE)(lambda path, rng: os.mkfifo(path))
_kind("folder", duty=REFUSE)(lambda path, rng: path.mkdir())
_kind("link to an endless device", duty=REFUSE)(lambda path, rng: path.symlink_to("/dev/zero"))
_kind("link to itself", duty=REFUSE)(lambda path, rng: path.symlink_to(path))
_kind("link to nothing", duty=REFUSE)(lambda path, rng: path.symlink_to("not there"))
_kind("without permission", duty=REFUSE)(lambda path, rng: path.write_bytes(b"closed") and path.chmod(0))


@_kind("socket", duty=REFUSE)
def _socket(path: Path, rng: Random) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")  # a path of its own may be too long for a socket
    finally:
        os.close(folder)


# --- sound clips under odd names


def _named(write: Callable[[str], str]) -> Callable[[Path, Random], Path]:
    def copy(path: Path, rng: Random) -> Path:
        target = path.with_name(write(path.stem))
        target.write_bytes(sound("start.mp4", int(rng.integers(200))))
        return target

    return copy


_kind("name with a newline", duty=PLAY)(_named(lambda stem: f"{stem}\nand more.mp4"))
_kind("name with percents", duty=PLAY)(_named(lambda stem: f"{stem}_%05d%s%n.mp4"))
_kind("name in Latin-1", duty=PLAY)(_named(lambda stem: os.fsdecode(f"{stem}_caf\xe9.mp4".encode("latin-1"))))
_kind("name with colons", duty=PLAY)(_named(lambda stem: f"{stem}::a:b.mp4"))
_kind("name of a member")(_named(lambda stem: f"{stem}.tar::b.mp4"))


# --- sound clips of rare kinds


@_kind("announced discontinuity", ".ts", PLAY)
def _announced(path: Path, rng: Random) -> None:
    said = struct.pack(">BHBBB", 0x47, 0x100, 0x20, 183, 0x80) + b"\xff" * 182  # no payload, of the video's PID
    path.write_bytes(sound("h264.ts") + said + sound("h264.ts", NUM_FRAMES))


@_kind("pictures that are not coded", ".avi", PLAY)
def _not_coded(path: Path, rng: Random) -> None:
    left_out = rng.choice(NUM_FRAMES, 6, replace=False)
    remux(
        path, [sound("mpeg4.avi")], NUM_FRAMES, lambda packet: not_coded(packet, 3) if packet.pts in left_out else None
    )
