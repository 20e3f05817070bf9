"""What a run draws is one stream, whoever makes it: any number of workers, of ranks, and after a resume on others.

Compared is all that a batch holds: its number, the records, their captions, and a digest of the pixels, by which
frames, window and mirroring are compared as well.
"""

import hashlib
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvtp.data.annotations import VideoRecord
from tests.data.clips import truncate, write_clip
from tests.data.loaders import make_loader

LENGTH, CLIPS = 24, 7  # batches of the stream that are looked at, and of clips in each
RANKS = (1, 2, 3, 4)  # each divides LENGTH


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Eleven videos of two lengths with two captions each, one of which is cut short, one that is a span of another."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [str(write_clip(folder / f"{i}.mp4", 12 + 4 * (i % 2), first=16 * i)) for i in range(10)]
    paths[4] = str(truncate(folder / "4.mp4", folder / "cut.mp4", 0.6))
    whole = [VideoRecord(str(i), path, (f"clip {i}", f"the {i}th")) for i, path in enumerate(paths)]
    return [*whole, VideoRecord("span", paths[3], ("a span", "part of 3"), start=0.5, end=1.4)]


def batches_of(records, seed, start, stop, ranks=1, workers=0):
    """What batches `start` to `stop` - 1 of the stream hold, from loaders of all ranks; ranks divides both bounds."""
    made = {}
    how = {"num_frames": 3, "image_size": (24, 32), "crop_scale": (0.3, 1.0), "sampling": "random_sorted"}
    for rank in range(ranks):
        steps = {"start_step": start // ranks, "num_steps": (stop - start) // ranks, "rank": rank, "world_size": ranks}
        with make_loader(
            records, None, batch_size=CLIPS, seed=seed, train=True, num_workers=workers, **how, **steps
        ) as clips:
            for batch in clips:
                digest = hashlib.sha1(batch.video.numpy().tobytes()).hexdigest()
                made[batch.step] = batch.sample_ids.tolist(), batch.captions, batch.sources, digest
    return made


@pytest.fixture(scope="module")
def stream(records):
    """The whole stream by its seed, as one rank makes it in its own process."""
    return lru_cache(lambda seed: batches_of(records, seed, 0, LENGTH))


@settings(max_examples=12, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2))
def test_ranks_and_a_resume_on_others_make_the_stream_of_one(records, stream, data, seed):
    before, after = data.draw(st.sampled_from(RANKS)), data.draw(st.sampled_from(RANKS))
    bound = data.draw(st.sampled_from([n for n in range(LENGTH + 1) if n % before == 0 and n % after == 0]))
    made = batches_of(records, seed, 0, bound, before) if bound else {}
    if bound < LENGTH:
        made |= batches_of(records, seed, bound, LENGTH, after)
    assert made == stream(seed)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_make_the_stream_of_this_process(records, stream, workers):
    assert batches_of(records, 0, 0, LENGTH, workers=workers) == stream(0)


def test_workers_of_several_ranks_make_it_too_after_a_resume(records, stream):
    made = batches_of(records, 1, 0, 6, ranks=2, workers=2)
    made |= batches_of(records, 1, 6, LENGTH, ranks=3, workers=1)
    assert made == stream(1)


def test_the_stream_tells_seeds_and_epochs_apart(stream):
    assert stream(0) != stream(1)
    digests = [digest for *_, digest in stream(0).values()]
    assert len(set(digests)) == LENGTH
