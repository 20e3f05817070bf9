"""Several windows of one decode, as consecutive clips of a training batch."""

import numpy as np
import pytest
import torch

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.sampling import ClipAugmentation
from fastvtp.data.stream import Batches
from fastvtp.data.video.decoding import Video
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import UserError
from tests.data.clips import write_clip
from tests.data.loaders import make_loader

VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}
SETTINGS = {"batch_size": 6, "num_frames": 4, "max_text_length": 8, "image_size": 32, "seed": 3, "num_workers": 0}
TOKENIZER = CaptionTokenizer.train(["one two three"], 50)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repeats")
    paths = [write_clip(folder / f"{i}.webm", first=20 * i, **VP9) for i in range(5)]
    (folder / "bad.webm").write_text("nothing")
    return [VideoRecord(path.name, str(path), ("one", "two", "three")) for path in [*paths, folder / "bad.webm"]]


def run(records, **settings):
    with make_loader(records, TOKENIZER, **{**SETTINGS, "train": True, "num_steps": 4, **settings}) as loader:
        return list(loader)


def test_clips_in_a_row_show_the_same_frames_decoded_once_in_other_windows(records, monkeypatch):
    asked = []
    read = Video.read_windows

    def noted(self, frames, windows, size=None):
        asked.append((self._name, tuple(frames), windows))
        return read(self, frames, windows, size)

    monkeypatch.setattr(Video, "read_windows", noted)
    batches = run(records, repeats=3)
    monkeypatch.undo()
    assert len(asked) == 4 * 6 // 3
    clips = [clip for batch in batches for clip in batch.video]
    names = [name for batch in batches for name in batch.sources]
    for place, (name, frames, windows) in enumerate(asked):
        assert names[3 * place : 3 * place + 3] == [name] * 3
        assert len(set(windows)) == 3
        for clip, window in zip(clips[3 * place :], windows, strict=False):
            with Video(name) as video:  # decoded separately
                assert np.array_equal(clip, video.read(frames, window, (32, 32)))
    flips = {window.flip for _, _, windows in asked for window in windows}
    assert flips == {True, False}
    captions = [caption for batch in batches for caption in batch.captions]
    assert captions[::3] == captions[1::3] == captions[2::3]


def test_the_first_of_a_row_is_what_it_is_without_repeats(records):
    erased = {"augmentation": ClipAugmentation(erasing=1.0)}
    alone = [clip for batch in run(records, **erased, batch_size=4, num_steps=2) for clip in batch.video]
    rows = [clip for batch in run(records, **erased, repeats=3) for clip in batch.video]
    assert torch.equal(torch.stack(alone), torch.stack(rows[::3]))


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_a_resumed_run_and_other_workers_make_the_same(records, decoder):
    settings = {"repeats": 2, "decoder": decoder, "augmentation": ClipAugmentation(erasing=0.5)}
    whole = run(records, **settings)
    resumed = run(records, **settings, start_step=2, num_steps=2, num_workers=2)
    for batch, other in zip(whole[2:], resumed, strict=True):
        assert batch.sample_ids.tolist() == other.sample_ids.tolist()
        assert torch.equal(batch.video, other.video)
    ids = [index for batch in whole for index in batch.sample_ids.tolist()]
    assert ids[::2] == ids[1::2]
    assert len({*ids}) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 4, "train": True, "repeats": 3}, "repeats must divide batch_size 4, got 3"),
        ({"batch_size": 4, "train": True, "repeats": 0}, "repeats must divide batch_size 4, got 0"),
        ({"batch_size": 4, "train": False, "repeats": 2}, "repeats 2 are for training"),
    ],
)
def test_repeats_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        Batches(**settings)
