"""A scene as frames: signed distances for the objects, a scrolling tone map for the background. NumPy only.

Lengths are in units of the frame's shorter side, positions relative to its centre, x to the right and y down.
"""

import random
from typing import NamedTuple

import numpy as np

from fastvtp.data.synthetic.scene import (
    Background,
    Scene,
    SceneObject,
)

OBJECT_RGB = {
    "red": (240, 25, 25),
    "orange": (255, 140, 0),
    "yellow": (255, 235, 40),
    "green": (40, 200, 50),
    "cyan": (40, 225, 235),
    "blue": (50, 95, 255),
    "pink": (255, 110, 210),
    "white": (250, 250, 250),
}
# Dark enough that no background, at its brightest, comes near an object's colour.
BACKGROUND_RGB = {
    "grey": (88, 88, 88),
    "brown": (100, 62, 30),
    "navy": (26, 32, 78),
    "olive": (76, 82, 28),
    "maroon": (88, 20, 50),
    "teal": (20, 86, 86),
}
_INK = 20  # grey level of the marks of a texture
_RIM = 0.08  # in radii
_RADIUS = {"small": (0.14, 0.16), "large": (0.22, 0.245)}
_GROWTH = (0.14, 0.245)
# When the two objects of a pair act, as fractions of the clip; eight uniformly spaced frames show four of each act.
_ACT_STARTS = (0.02, 0.54)
_ACT_LENGTH = 0.44
_DRIFT_PER_FRAME = (0.018, 0.025)
_TONE_CONTRAST = 0.3
_FLICKER = 0.35
# Pixels around the canvas, so that the window around an object at the very edge stays inside.
_MARGIN = 8


class Track(NamedTuple):
    """Where an object is in each frame: float32 [T] each; x, y, radius in units of the shorter side, opacity 0..1."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    opacity: np.ndarray


def render_scene(scene: Scene, num_frames: int, height: int, width: int) -> np.ndarray:
    """Return the clip as uint8 RGB frames [T, H, W, 3]; the same scene and size always give the same bytes."""
    rng = random.Random(scene.layout_seed)
    unit = min(height, width)
    # Colour planes apart, [T, 3, H, W]: NumPy is slow over an innermost axis of length three.
    canvas = _background(scene.background, rng, num_frames, height + 2 * _MARGIN, width + 2 * _MARGIN, unit)
    for item, track in zip(scene.objects, object_tracks(scene, num_frames, height, width), strict=True):
        _paint(canvas, item, track, unit)
    frames = canvas[:, :, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return np.ascontiguousarray(frames.round().astype(np.uint8).transpose(0, 2, 3, 1))


def object_tracks(scene: Scene, num_frames: int, height: int, width: int) -> list[Track]:
    """Return the track of each object of the scene; every object stays inside the frame while it is visible."""
    time = np.linspace(0, 1, num_frames, dtype=np.float32)
    half_x, half_y = width / min(height, width) / 2, height / min(height, width) / 2
    if scene.arrangement == "single":
        return [_track(item, _layout_rng(scene, item), time, (0.0, 0.0), (half_x, half_y)) for item in scene.objects]
    tracks = []
    for item, start in zip(scene.objects, _ACT_STARTS, strict=True):
        progress = np.clip((time - start) / _ACT_LENGTH, 0, 1)
        side = _side(scene, item)
        if scene.arrangement == "rows":
            centre, room = (0.0, side * half_y), (half_x, half_y / 2)
        else:
            centre, room = (side * half_x, 0.0), (half_x / 2, half_y)
        tracks.append(_track(item, _layout_rng(scene, item), progress, centre, room))
    return tracks


def _layout_rng(scene: Scene, item: SceneObject) -> random.Random:
    # By what the object is and not by its turn: twins that differ in order keep their places.
    return random.Random(f"{scene.layout_seed}/{item.shape}")


def _side(scene: Scene, item: SceneObject) -> float:
    """Return which half of the frame is the object's, -0.5 or 0.5; it does not depend on the order of the objects."""
    place = sorted(other.shape for other in scene.objects).index(item.shape)
    return 0.5 if (place + scene.layout_seed) % 2 else -0.5


def _track(
    item: SceneObject,
    rng: random.Random,
    progress: np.ndarray,
    centre: tuple[float, float],
    room: tuple[float, float],
) -> Track:
    """Move one object through its motion as `progress` [T] goes from 0 to 1, within centre +- room."""
    one = np.ones_like(progress)
    radius, opacity = one * rng.uniform(*_RADIUS[item.size]), one
    if item.motion in ("grow", "shrink"):
        start, end = _GROWTH if item.motion == "grow" else _GROWTH[::-1]
        radius = start + (end - start) * progress
    reach_x, reach_y = (max(0.0, extent - float(radius.max())) for extent in room)
    x, y = one * rng.uniform(-reach_x, reach_x), one * rng.uniform(-reach_y, reach_y)
    travel = rng.uniform(0.85, 1.0) * (2 * progress - 1)
    switch = np.clip((progress - rng.uniform(0.35, 0.65)) / 0.1 + 0.5, 0, 1)
    turn = 2 * np.pi * (rng.random() + progress * rng.uniform(0.8, 1.0) * (1 if item.motion == "clockwise" else -1))
    match item.motion:
        case "left" | "right":
            x = reach_x * travel * (1 if item.motion == "right" else -1)
        case "up" | "down":
            y = reach_y * travel * (1 if item.motion == "down" else -1)
        case "clockwise" | "anticlockwise":
            # y points down, so a growing angle turns clockwise for the viewer.
            orbit = min(reach_x, reach_y)
            x, y = orbit * np.cos(turn), orbit * np.sin(turn)
        case "appear":
            opacity = switch
        case "vanish":
            opacity = 1 - switch
    return Track(*(np.asarray(a, np.float32) for a in (centre[0] + x, centre[1] + y, radius, opacity)))


def _paint(canvas: np.ndarray, item: SceneObject, track: Track, unit: int) -> None:
    """Blend one object into canvas [T, 3, H, W]; only a window around the object is computed."""
    num_frames, _, height, width = canvas.shape
    radius = track.radius * unit
    x, y = (width - 1) / 2 + track.x * unit, (height - 1) / 2 + track.y * unit
    reach = int(np.ceil(radius.max())) + 2
    left, top = np.rint(x) - reach, np.rint(y) - reach
    offsets = np.arange(2 * reach + 1, dtype=np.float32)
    u = ((offsets + left[:, None] - x[:, None]) / radius[:, None])[:, None, :]
    v = ((offsets + top[:, None] - y[:, None]) / radius[:, None])[:, :, None]
    pixels = radius[:, None, None]
    distance = _signed_distance(item.shape, u, v)
    coverage = np.clip(0.5 - distance * pixels, 0, 1) * track.opacity[:, None, None]
    # The marks keep off the outline, which would otherwise be lost against a dark background.
    marks = np.minimum(_marks_depth(item.texture, u, v), -distance - _RIM)
    ink = np.clip(0.5 + marks * pixels, 0, 1)[:, None]
    colour = np.asarray(OBJECT_RGB[item.colour], np.float32)[:, None, None]
    paint = colour + ink * (np.float32(_INK) - colour)
    for t in range(num_frames):
        row, column = int(top[t]), int(left[t])
        window = canvas[t, :, row : row + len(offsets), column : column + len(offsets)]
        window += coverage[t] * (paint[t] - window)


def _signed_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the distance from the outline in radii, negative inside; u [T, 1, S] and v [T, S, 1] are offsets in
    radii."""
    match shape:
        case "circle":
            return np.hypot(u, v) - 0.95
        case "ring":
            return np.abs(np.hypot(u, v) - 0.66) - 0.32
        case "square":
            return np.maximum(np.abs(u), np.abs(v)) - 0.84
        case "triangle":
            return np.maximum(v - 0.75, 0.8944 * np.abs(u) - 0.4472 * (v + 1))
        case "cross":
            return np.minimum(
                np.maximum(np.abs(u) - 0.96, np.abs(v) - 0.33), np.maximum(np.abs(u) - 0.33, np.abs(v) - 0.96)
            )
        case "star":
            return _star_distance(u, v)
        case "heart":
            # A square standing on its corner with a half disc on each of its two upper sides.
            a, b = (np.abs(u) + v - 0.08) * 0.7071, (np.abs(u) - v + 0.08) * 0.7071
            side = 0.57
            square = np.maximum(np.abs(a), np.abs(b)) - side
            return np.minimum(square, np.hypot(a, b - side) - side)
    raise ValueError(f"unknown shape {shape!r}")


def _star_distance(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the distance from the edges of an upright five-pointed star whose inner radius is 0.45 of the outer."""
    sector = 2 * np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + sector / 2) % sector - sector / 2)
    rho = np.hypot(u, v)
    inner = 0.45 * np.exp(1j * sector / 2)
    normal = (inner - 1) * -1j / abs(inner - 1)
    return (rho * np.cos(angle) - 1) * np.float32(normal.real) + rho * np.sin(angle) * np.float32(normal.imag)


def _marks_depth(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the distance in radii into the dark marks of a texture, negative outside them."""
    match texture:
        case "solid":
            return np.full(np.broadcast_shapes(u.shape, v.shape), -1, np.float32)
        case "striped":
            period = 0.62
            return 0.4 * period - 2 * np.abs((u + v) * 0.7071 % period - period / 2)
        case "dotted":
            spacing = 0.52
            return 0.17 - np.hypot((u + spacing / 2) % spacing - spacing / 2, (v + spacing / 2) % spacing - spacing / 2)
        case "checkered":
            cell = 0.42
            return (np.abs(u % (2 * cell) - cell) - cell / 2) * np.sign(np.abs(v % (2 * cell) - cell) - cell / 2)
    raise ValueError(f"unknown texture {texture!r}")


def _background(
    background: Background, rng: random.Random, num_frames: int, height: int, width: int, unit: int
) -> np.ndarray:
    """Return float32 RGB planes [T, 3, H, W]: a tone map seen through a window that may slide."""
    speed = rng.uniform(*_DRIFT_PER_FRAME) * unit if background.behaviour.startswith("drifting") else 0.0
    steps = np.rint(speed * np.arange(num_frames)).astype(int)
    # The window runs to the right where the pattern is to run to the left.
    starts = steps if background.behaviour == "drifting left" else steps[-1] - steps
    tone = _tone(background.pattern, rng, height, width + int(steps[-1]), unit)
    light = np.ones(num_frames, np.float32)
    if background.behaviour == "flickering":
        # At 0.3 cycles a frame, every second and every fourth frame, too, show both brightnesses.
        light += _FLICKER * np.sign(np.sin(2 * np.pi * (0.3 * np.arange(num_frames) + rng.random())))
    windows = np.stack([tone[:, start : start + width] for start in starts])
    shade = (1 + _TONE_CONTRAST * windows) * light[:, None, None]
    return shade[:, None] * np.asarray(BACKGROUND_RGB[background.colour], np.float32)[:, None, None]


def _tone(pattern: str, rng: random.Random, height: int, width: int, unit: int) -> np.ndarray:
    """Return a tone map float32 [H, W] from -1 (dark) to 1 (bright), at a random phase."""
    y = (np.arange(height, dtype=np.float32)[:, None] / unit) + rng.random()
    x = (np.arange(width, dtype=np.float32)[None, :] / unit) + rng.random()
    match pattern:
        case "plain":
            return np.zeros((height, width), np.float32)
        case "checkerboard":
            cell = 0.14
            return np.where((x // cell + y // cell) % 2 < 1, 1, -1).astype(np.float32)
        case "wavy":
            return np.sin(2 * np.pi * (x + 0.05 * np.sin(2 * np.pi * y / 0.4)) / 0.24).astype(np.float32)
        case "grid":
            spacing, line = 0.2, 0.025
            return np.where(np.minimum(x % spacing, y % spacing) < line, 1, -0.5).astype(np.float32)
        case "grainy":
            cell = max(1, round(unit / 28))
            noise = np.random.default_rng(rng.getrandbits(32))
            grain = noise.uniform(-1, 1, (height // cell + 1, width // cell + 1)).astype(np.float32)
            return grain.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    raise ValueError(f"unknown pattern {pattern!r}")
