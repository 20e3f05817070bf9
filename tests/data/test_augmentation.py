from typing import Any

import numpy as np
import pytest
import torch

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.augmentation import mixup, soft_targets
from fastvtp.data.rand_augment import OPERATIONS
from fastvtp.data.sampling import ClipAugmentation, step_rng
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import UserError
from tests.data.clips import barcode_frames, write_clip
from tests.data.loaders import make_loader

BOTH = ClipAugmentation(rand_augment="rand-m7-n2-mstd0.5-inc1", erasing=0.5)
GREY = 128


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Still clips: a codec without prediction and of fixed quality keeps their frames equal to the last bit."""
    how = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {"qmin": "3", "qmax": "3"}}
    folder = tmp_path_factory.mktemp("still")
    records = []
    for i in range(6):
        frames = np.repeat(barcode_frames(1, 64, 96, first=37 * i), 4, axis=0)
        path = write_clip(folder / f"{i}.avi", frames=frames, **how)
        records.append(VideoRecord(str(i), str(path), ("a clip",)))
    return records


@pytest.fixture
def load(records):
    loaders = []

    def make(augmentation, **settings):
        defaults = {"batch_size": 6, "num_frames": 3, "image_size": (32, 40), "num_steps": 3, "num_workers": 0}
        text = {"max_text_length": 16, "seed": 5, "train": True}
        tokenizer = CaptionTokenizer.train(["a clip"], 50)
        if augmentation is not None:
            settings["augmentation"] = augmentation
        loaders.append(make_loader(records, tokenizer, **{**defaults, **text, **settings}))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def clips(loader):
    """uint8 [steps * batch_size, T, H, W, 3], in the order of their numbers."""
    return torch.cat([batch.video for batch in loader])


def assert_equal(clips, others):
    torch.testing.assert_close(clips, others, rtol=0, atol=0)


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_augmented_clips_depend_neither_on_workers_nor_on_resuming(load, decoder):
    whole = clips(load(BOTH, decoder=decoder))
    assert_equal(whole, clips(load(BOTH, decoder=decoder, num_workers=1)))
    assert_equal(whole[12:], clips(load(BOTH, decoder=decoder, start_step=2, num_steps=1)))
    changed = (whole != clips(load(None, decoder=decoder))).flatten(1).any(1)
    assert changed.sum() > 12
    assert len({clip.numpy().tobytes() for clip in whole}) == len(whole)


def test_frames_of_a_still_clip_stay_equal(load):
    video = clips(load(BOTH, num_steps=10))
    assert_equal(video, video[:, :1].expand_as(video))


def test_every_operation_occurs_and_changes_the_clip_where_there_is_something_to_change(load):
    loader = load(ClipAugmentation(rand_augment="rand-m7-n1-inc1"), num_steps=30)
    plain = clips(load(None, num_steps=30))
    changed = (clips(loader) != plain).flatten(1).any(1).tolist()
    stretchable = [(clip.amin((0, 1, 2)), clip.amax((0, 1, 2))) for clip in plain]
    by_operation: dict[str, set[bool]] = {}
    for number, difference in enumerate(changed):
        *_, drawn, _ = loader._source.load(number).arrays
        name, (low, high) = OPERATIONS[drawn[0]], stretchable[number]
        if name == "auto_contrast":  # of what is as black and white as can be there is nothing to stretch
            assert difference == bool((low > 0).any() or (high < 255).any())
        by_operation.setdefault(name, set()).add(difference)
    assert by_operation.pop("identity") == {False}
    by_operation.pop("auto_contrast")
    assert set(by_operation) == set(OPERATIONS[2:-1])
    assert all(True in differences for differences in by_operation.values()), by_operation


def test_the_sign_drawn_decides_the_direction_and_the_magnitude_the_distance(load):
    def grey_columns(magnitude):
        loader = load(ClipAugmentation(rand_augment=f"rand-m{magnitude}-n1-p1-inc1"), num_steps=25)
        for number, clip in enumerate(clips(loader)):
            *_, drawn, arguments = loader._source.load(number).arrays
            if OPERATIONS[drawn[0]] == "translate_x":
                grey = (clip == GREY).flatten(3).all(3).all(1).all(0)  # [W]
                yield bool(arguments[0] < 0), grey.tolist()

    for magnitude, distance in ((10, 0.45 * 40), (5, 0.225 * 40)):
        found = dict(grey_columns(magnitude))
        assert set(found) == {False, True}
        assert abs(sum(found[False]) - distance) <= 1
        assert found[True] == sorted(found[True], reverse=True)  # moved right: grey on the left
        assert found[False] == sorted(found[False])


def test_a_clip_in_which_directions_matter_is_not_mirrored_by_any_operation(records, load):
    augmentation = ClipAugmentation(rand_augment="oneway-m5-n2-flip1")

    def mirrored(caption):
        named = [VideoRecord(record.id, record.video, (caption,)) for record in records]
        source = make_loader(
            named, None, num_frames=1, image_size=16, batch_size=6, train=True, num_workers=0, augmentation=augmentation
        )._source
        drawn = [source.load(number).arrays[-2] for number in range(120)]
        return sum(OPERATIONS.index("mirror") in places for places in drawn)

    assert 10 < mirrored("a clip") < 40
    assert mirrored("it moves left") == 0


def test_erasing_greys_one_box_in_all_frames_and_touches_nothing_else(load):
    plain, erased = (clips(load(augmentation, num_steps=10)) for augmentation in (None, ClipAugmentation(erasing=1.0)))
    areas, shapes = [], []
    for clip, before in zip(erased, plain, strict=True):
        grey = (clip == GREY).all(-1).all(0)  # [H, W]
        rows, columns = grey.any(1).nonzero().flatten(), grey.any(0).nonzero().flatten()
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        assert grey[top:bottom, left:right].all()
        clip[:, top:bottom, left:right] = before[:, top:bottom, left:right]
        assert_equal(clip, before)
        height, width = int(bottom - top), int(right - left)
        areas.append(height * width / (32 * 40))
        shapes.append(height / width)
    assert 0.01 < min(areas) < 0.1 < 0.25 < max(areas) < 0.36
    assert 0.2 < min(shapes) < 0.6 < 1.6 < max(shapes) < 4


def test_erasing_comes_as_often_as_asked(load):
    loader = load(ClipAugmentation(erasing=0.25))
    sizes = [loader._source.load(number).arrays[-1] for number in range(400)]
    assert 70 < sum(bool(size.any()) for size in sizes) < 130


def test_augmentation_leaves_all_other_draws_as_they_are(load):
    plain, augmented = load(None), load(BOTH)
    for number in range(12):
        before, after = plain._source.load(number).arrays, augmented._source.load(number).arrays
        assert len(after) == len(before) + 4
        for array, other in zip(before, after, strict=False):
            np.testing.assert_array_equal(array, other)
    assert_equal(clips(plain), clips(load(ClipAugmentation())))


def test_evaluation_is_never_augmented(load):
    settings = {"train": False, "num_steps": None}
    assert_equal(clips(load(BOTH, **settings)), clips(load(None, **settings)))


def test_bad_augmentations_are_refused(load):
    wrong: dict[str, Any]
    for wrong, complaint in (
        ({"rand_augment": "rand-m7-n0"}, "rand_augment: expected a number of operations"),
        ({"erasing": 1.5}, "erasing: expected a share from 0 to 1, got 1.5"),
    ):
        with pytest.raises(UserError, match=complaint):
            ClipAugmentation(**wrong)
    with pytest.raises(UserError, match="augmentation needs an image_size"):
        load(BOTH, image_size=None)


def batch(size=4):
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (size, 2, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return video, soft_targets(torch.arange(size), size)


def test_mixup_blends_clips_and_targets_with_the_reversed_batch():
    video, targets = batch()
    before = video.clone(), targets.clone()
    mixed, soft = mixup(video, targets, 0.8, seed=3, step=2)
    assert (mixed.dtype, soft.dtype) == (torch.uint8, torch.float32)
    assert_equal((video, targets), before)
    share = soft[0, 0].item()
    assert share == pytest.approx(step_rng(3, 2).beta(0.8, 0.8))
    torch.testing.assert_close(soft, share * targets + (1 - share) * targets.flip(0))
    expected = share * video.double() + (1 - share) * video.flip(0).double()
    assert (mixed.double() - expected).abs().max() <= 0.5 + 1e-4


def test_mixup_is_a_function_of_seed_and_step():
    video, targets = batch()
    assert_equal(mixup(video, targets, 0.8, seed=1, step=2), mixup(video, targets, 0.8, seed=1, step=2))
    shares = {mixup(video, targets, 0.8, seed=seed, step=step)[1][0, 0].item() for seed in (0, 1) for step in (0, 1)}
    assert len(shares) == 4


def test_the_weight_follows_the_beta_distribution():
    video, targets = batch(2)
    for alpha in (0.2, 2.0):
        shares = np.array([mixup(video, targets, alpha, seed=0, step=step)[1][0, 0].item() for step in range(400)])
        assert abs(shares.mean() - 0.5) < 0.06
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.2)


def test_soft_targets_spread_the_smoothing_over_all_classes():
    assert soft_targets(torch.tensor([2, 0]), 4).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    smooth = soft_targets(torch.tensor([2]), 4, smoothing=0.2)
    torch.testing.assert_close(smooth, torch.tensor([[0.05, 0.05, 0.85, 0.05]]))
    assert smooth.dtype == torch.float32


def test_bad_batches_are_refused():
    video, targets = batch()
    for arguments, complaint in (
        ((video, targets, 0.0), "alpha must be positive, got 0.0"),
        ((video.float(), targets, 1.0), r"video: expected uint8 \[B, T, H, W, 3\], got torch.float32"),
        ((video, targets[:2], 1.0), r"targets: expected float \[4, classes\], got torch.float32 \[2, 4\]"),
        ((video, torch.arange(4), 1.0), "targets: expected float"),
    ):
        with pytest.raises(UserError, match=complaint):
            mixup(*arguments, seed=0, step=0)
    with pytest.raises(UserError, match="smoothing: expected 0 <= smoothing < 1, got 1"):
        soft_targets(torch.tensor([0]), 2, 1)
    with pytest.raises(UserError, match=r"labels: expected int64 \[B\], got torch.float32 \[1\]"):
        soft_targets(torch.tensor([0.0]), 2)
