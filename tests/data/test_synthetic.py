import io
import itertools
import random
import re
from collections import Counter, defaultdict
from dataclasses import asdict, replace

import av
import numpy as np
import pytest

from fastvtp.data.synthetic import SyntheticConfig, writer
from fastvtp.data.synthetic.language import ask, describe
from fastvtp.data.synthetic.render import (
    BACKGROUND_RGB,
    OBJECT_RGB,
    render_scene,
)
from fastvtp.data.synthetic.scene import (
    MOTIONS,
    PATTERNS,
    SHAPES,
    TEXTURES,
    Background,
    Scene,
    SceneObject,
    sample_scenes,
    temporal_twin,
)

# What a reader understands a caption to claim, written down apart from the generator's own tables.
VERBS = {
    r"(moves|slides|glides|travels) left": "left",
    r"(moves|slides|glides|travels) right": "right",
    r"(moves|slides|glides|rises) up": "up",
    r"(moves|slides|glides|sinks) down": "down",
    r"grows bigger|grows|expands|gets bigger": "grow",
    r"shrinks down|shrinks|contracts|gets smaller": "shrink",
    r"(suddenly )?appears|pops up|shows up": "appear",
    r"(suddenly )?vanishes|disappears|goes away": "vanish",
    r"(orbits|circulates|travels around) clockwise": "clockwise",
    r"(orbits|circulates|travels around) anticlockwise": "anticlockwise",
}
MENTION = re.compile(
    r"a (?P<size>small|little|large|big) (?:(?P<before>solid|striped|dotted|checkered) )?"
    rf"(?P<colour>{'|'.join(OBJECT_RGB)}) (?P<shape>{'|'.join(SHAPES)})"
    rf"(?: with (?P<with>stripes|dots|checks))? (?P<verb>{'|'.join(VERBS)})"
)
BACKGROUND = re.compile(
    rf"(?P<first>still|flickering)? ?(?P<adjective>plain|wavy|grainy)? ?\b(?P<colour>{'|'.join(BACKGROUND_RGB)}) "
    r"(?P<noun>checkerboard|grid)? ?background(?P<last> that stays still| that flickers| (that drifts|drifting) \w+)?"
)
SIZES = {"small": "small", "little": "small", "large": "large", "big": "large"}
TEXTURE_NOUNS = {"stripes": "striped", "dots": "dotted", "checks": "checkered"}


def understand(caption):
    """Reads a caption back: the objects in the order in which they act, and the background."""
    text = caption.lower()
    objects = [
        SceneObject(
            shape=match["shape"],
            colour=match["colour"],
            texture=match["before"] or TEXTURE_NOUNS[match["with"]],
            size=SIZES[match["size"]],
            motion=next(motion for verb, motion in VERBS.items() if re.fullmatch(verb, match["verb"])),
        )
        for match in MENTION.finditer(text)
    ]
    if re.search(rf"({'|'.join(VERBS)}) after a ", text):  # where "after" begins the clause, A is named first
        objects.reverse()
    found = BACKGROUND.search(text)
    assert found, caption
    behaviour = found["first"] or found["last"]
    for pattern, meaning in (("still", "still"), ("flicker", "flickering"), ("left", "drifting left")):
        if pattern in behaviour:
            behaviour = meaning
    if "right" in behaviour:
        behaviour = "drifting right"
    return tuple(objects), Background(found["colour"], found["adjective"] or found["noun"], behaviour)


def colour_masks(frames):
    """Where a clip shows each object colour: {colour: bool [T, H, W]}; the dark marks of a texture are left out."""
    distance = np.stack([np.abs(frames.astype(np.int16) - rgb).sum(-1) for rgb in OBJECT_RGB.values()])
    nearest, near = distance.argmin(0), distance.min(0) < 95
    return {colour: near & (nearest == index) for index, colour in enumerate(OBJECT_RGB)}


def act(mask):
    """What an object with mask [T, H, W] is seen to do and when it is half done, as (motion, frame)."""
    area = mask.sum((1, 2)).astype(float)
    y, x = np.mgrid[: mask.shape[1], : mask.shape[2]]
    centre = np.stack([(mask * x).sum((1, 2)), (mask * y).sum((1, 2))], 1) / np.maximum(area, 1)[:, None]
    # The blurred outline of another object may take on this colour, so a few pixels are not yet an object.
    present = area > area.max() / 8
    if not present[0] or not present[-1]:
        return ("appear", int(np.argmax(present))) if present[-1] else ("vanish", int(np.argmin(present)))
    around = centre - centre.mean(0)
    turning = np.sum(around[:-1, 0] * around[1:, 1] - around[:-1, 1] * around[1:, 0])
    if abs(turning) > 0.05 * mask.shape[1] ** 2:
        return ("clockwise" if turning > 0 else "anticlockwise"), -1
    shift = centre[-1] - centre[0]
    if area[-1] / area[0] > 1.8 or area[0] / area[-1] > 1.8:
        motion, course = ("grow" if area[-1] > area[0] else "shrink"), area
    elif abs(shift[0]) > abs(shift[1]):
        motion, course = ("right" if shift[0] > 0 else "left"), centre[:, 0]
    else:
        motion, course = ("down" if shift[1] > 0 else "up"), centre[:, 1]
    return motion, int(np.argmax(np.abs(course - course[0]) > np.abs(course - course[-1])))


def background_only(frames, masks):
    """Frames [T, H, W, 3] as floats with the box around each object of the clip set to NaN."""
    frames = frames.astype(float)
    for mask in masks:
        for t in range(len(frames)):
            # An object that fades loses its colour before its place, but it stands still; so does one that grows.
            y, x = np.nonzero(mask[t] if mask[t].sum() > mask.sum((1, 2)).max() / 2 else mask.any(0))
            frames[t, max(y.min() - 4, 0) : y.max() + 5, max(x.min() - 4, 0) : x.max() + 5] = np.nan
    return frames


def background_behaviour(frames):
    """What a background [T, H, W, 3] with NaN holes is seen to do."""
    grey = frames.mean(-1)
    brightness = np.nanmean(grey, (1, 2))
    if brightness.max() / brightness.min() > 1.5:
        return "flickering"

    def mismatch(shift):
        return np.nanmean(np.abs(grey[1:, :, 8:-8] - np.roll(grey, shift, 2)[:-1, :, 8:-8]))

    best = min(range(-5, 6), key=lambda shift: (mismatch(shift), abs(shift)))
    if abs(best) < 1 or mismatch(0) < 2:
        return "still"
    return "drifting right" if best > 0 else "drifting left"


def through_h264(frames):
    video = writer.encode_h264(frames, fps=8, keyframe_interval=8, crf=20)
    with av.open(io.BytesIO(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_captions_are_true_of_the_decoded_frames():
    for index, scene in enumerate(sample_scenes(3, "train", 32, 0.25, set())):
        caption = describe(scene, random.Random(index))
        frames = through_h264(render_scene(scene, 16, 112, 112))
        objects, background = understand(caption)
        masks = colour_masks(frames)
        masks = [masks[item.colour] for item in objects]
        seen = [act(mask) for mask in masks]
        assert [motion for motion, _ in seen] == [item.motion for item in objects], caption
        if len(objects) == 2:
            assert seen[0][1] < 8 <= seen[1][1], caption
        for item, mask in zip(objects, masks, strict=True):
            y, x = np.nonzero(mask[0 if item.motion != "appear" else -1])
            extent = max(np.ptp(y), np.ptp(x))
            assert ("small" if extent < 38 else "large") == item.size, caption
        empty = background_only(frames, masks)
        assert background_behaviour(empty) == background.behaviour, caption
        mean = np.nanmean(empty, (0, 1, 2))
        nearest = {name: mean @ rgb / np.linalg.norm(rgb) for name, rgb in BACKGROUND_RGB.items()}
        assert max(nearest, key=nearest.__getitem__) == background.colour, caption
        contrast = np.nanstd(empty[0].mean(-1)) / np.nanmean(empty[0])
        assert (contrast < 0.05) == (background.pattern == "plain"), caption


def test_every_motion_shows_in_eight_of_sixteen_frames():
    background = Background("grey", "plain", "still")
    for motion, seed, offset in itertools.product(MOTIONS, range(3), (0, 1)):
        item = SceneObject("circle", "red", "solid", "small", motion)
        frames = render_scene(Scene((item,), background, "single", seed), 16, 112, 112)
        assert act(colour_masks(frames[offset::2])["red"])[0] == motion
    for seed, stride in itertools.product(range(8), (2, 4)):
        scene = Scene((), replace(background, behaviour="flickering"), "single", seed)
        light = render_scene(scene, 16, 112, 112)[::stride, :, :, 0].min((1, 2)).astype(float)
        assert light.max() / light.min() > 1.5


def test_shapes_and_textures_are_what_their_names_say():
    still = Background("navy", "plain", "still")

    def first_frame(shape, texture):
        # Starts large, so that the first frame shows it best.
        item = SceneObject(shape, "white", texture, "large", "shrink")
        return render_scene(Scene((item,), still, "single", 1), 8, 224, 224)[0]

    filled = {}
    for shape in SHAPES:
        mask = (first_frame(shape, "solid") > 150).all(-1)
        y, x = np.nonzero(mask)
        crop = mask[y.min() : y.max() + 1, x.min() : x.max() + 1]
        assert 0.37 < max(crop.shape) / 224 < 0.495, shape  # at most half the frame: two objects share it
        middle = crop[crop.shape[0] // 2, crop.shape[1] // 2]
        assert middle == (shape != "ring")
        assert (crop == crop[:, ::-1]).mean() > 0.95
        upper, lower = np.array_split(crop.sum(1), 2)
        filled[shape] = (round(float(crop.mean()), 1), float(upper.sum() / lower.sum()))
    assert {shape: fill for shape, (fill, _) in filled.items()} == pytest.approx(
        {"circle": 0.8, "square": 1, "triangle": 0.5, "star": 0.4, "cross": 0.6, "ring": 0.7, "heart": 0.7}, abs=0.11
    )
    assert filled["triangle"][1] < 0.5 < 1.3 < filled["heart"][1]

    # The square's inner part, clear of its rim, by the share of dark pixels and by the directions its marks run in.
    for texture in TEXTURES:
        frame = first_frame("square", texture)
        y, x = np.nonzero((frame > 150).all(-1))
        inner = (frame[y.min() + 10 : y.max() - 10, x.min() + 10 : x.max() - 10] < 128).all(-1)
        share = inner.mean()
        along_diagonal = (inner[8:, :-8] == inner[:-8, 8:]).mean() - (inner[8:, 8:] == inner[:-8, :-8]).mean()
        across = np.mean(inner == inner[:, ::-1])
        expected = {
            "solid": share == 0,
            "striped": 0.2 < share < 0.6 and along_diagonal > 0.4,
            "dotted": 0.15 < share < 0.5 and abs(along_diagonal) < 0.05 and across > 0.9,
            "checkered": 0.3 < share < 0.7 and abs(along_diagonal) < 0.05,
        }
        assert expected[texture], (texture, share, along_diagonal, across)


def test_object_colours_stand_out_from_every_background():
    for (colour, rgb), background, pattern in itertools.product(OBJECT_RGB.items(), BACKGROUND_RGB, PATTERNS):
        scene = Scene((), Background(background, pattern, "flickering"), "single", 0)
        shades = render_scene(scene, 8, 64, 64).reshape(-1, 3).astype(int)
        assert np.abs(shades - rgb).sum(-1).min() > 140, (colour, background, pattern)


def test_scenes_and_captions_are_unique_and_splits_disjoint():
    clips = writer.plan_clips(SyntheticConfig())
    scenes = {split: [clip.scene for clip in listed] for split, listed in clips.items()}
    captions = {
        split: [describe(scene, random.Random(i)) for i, scene in enumerate(listed)] for split, listed in scenes.items()
    }
    assert len(set(scenes["train"] + scenes["test"])) == 3256
    assert len(set(captions["train"] + captions["test"])) == 3256
    for caption, scene in zip(captions["train"] + captions["test"], scenes["train"] + scenes["test"], strict=True):
        assert 12 <= len(caption.split()) <= 28
        assert understand(caption) == (scene.objects, scene.background), caption
    words = {word for caption in captions["train"] for word in re.findall(r"\w+", caption.lower())}
    assert len(words) < 150
    assert len({caption.split()[0] for caption in captions["test"]}) >= 6


def test_twins_look_alike_and_differ_in_time():
    scenes = list(sample_scenes(0, "train", 200, 1.0, set()))
    assert sum(b == temporal_twin(a) for a, b in itertools.pairwise(scenes)) >= 95
    assert all(b != temporal_twin(a) for a, b in itertools.pairwise(sample_scenes(0, "train", 200, 0.0, set())))
    for scene in scenes[:12]:
        twin = temporal_twin(scene)
        assert temporal_twin(twin) == scene
        assert twin.background == scene.background
        still = replace(scene.background, behaviour="still")
        once, again = (render_scene(replace(each, background=still), 16, 64, 64).astype(int) for each in (scene, twin))
        assert np.abs(once[8] - again[8]).mean() > 1 or len(scene.objects) == 1
        # Two events in the other order begin and end alike; an opposite motion begins where the other ends.
        first, last = (0, -1) if len(scene.objects) == 2 or "clockwise" in scene.objects[0].motion else (-1, 0)
        assert np.abs(once[0] - again[first]).max() <= 1
        assert np.abs(once[-1] - again[last]).max() <= 1 or "clockwise" in scene.objects[0].motion


def test_questions_are_answered_by_the_scene_and_balanced():
    answers, kinds = defaultdict(Counter), Counter()
    for index, scene in enumerate(sample_scenes(1, "train", 2000, 0.25, set())):
        asked = ask(scene, random.Random(index))
        assert len({question.kind for question in asked}) == len(asked) == 3, asked
        for question in asked:
            answers[question.kind][question.answer] += 1
            kinds[question.kind] += 1
            about = next(
                (item for item in scene.objects if re.search(rf"{item.colour}|{item.shape}", question.question)), None
            )
            named = [item.shape for item in scene.objects if item.shape in question.question]
            truth = asdict(about) if about else {}
            expected = {
                "colour": truth.get("colour"),
                "shape": truth.get("shape"),
                "texture": truth.get("texture"),
                "size": truth.get("size"),
                "direction": truth.get("motion"),
                "order": scene.objects[0].shape if len(named) == 2 else None,
                "background colour": scene.background.colour,
                "background pattern": scene.background.pattern,
                "background behaviour": scene.background.behaviour,
            }
            if question.kind == "motion":
                travels = truth["motion"] in ("left", "right", "up", "down")
                orbits = truth["motion"].endswith("clockwise")
                expected["motion"] = "moves" if travels else "orbits" if orbits else question.answer
                assert travels or orbits or question.answer.startswith(truth["motion"])
            assert question.answer == expected[question.kind], (question, scene)
    for kind, counts in answers.items():
        assert max(counts.values()) <= 0.6 * kinds[kind], (kind, counts)
        assert len(counts) >= 2
    assert min(kinds[kind] for kind in ("colour", "direction", "motion", "order")) > 200
