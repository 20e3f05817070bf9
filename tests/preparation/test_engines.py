"""Whoever does the work, the shards are the same."""

import pytest

from fastvtp.errors import UserError
from fastvtp.preparation.engines import Engine
from tests.preparation.sets import captioned, digests, quietly, run


def test_engines_that_there_are_not_are_refused():
    with pytest.raises(UserError, match=r"engine must be one of pool, ray, got 'spark'"):
        Engine("spark")
    with pytest.raises(UserError, match=r"workers must be at least 1, got 0"):
        Engine(workers=0)


def test_without_ray_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"engine=ray needs Ray: pip install 'fastvtp\[ray\]'"):
        run(captioned(tmp_path / "in", 1), tmp_path / "out", running=quietly(engine=Engine("ray")))


def test_what_fails_in_a_thread_fails_the_run(tmp_path):
    """A full disk is the run's to say, not a file's."""

    def fails(work, seen):
        raise OSError(28, "No space left on device")

    class Work:
        items = ()

    with pytest.raises(OSError, match=r"No space left on device"):
        Engine(workers=2).run([(Work(),), (Work(),)], fails, lambda items: None)


def _equal_shards(tmp_path, count, per_shard):
    source = captioned(tmp_path / "in", count)
    run(source, tmp_path / "pool", per_shard, quietly(engine=Engine(workers=2)))
    report = run(source, tmp_path / "ray", per_shard, quietly(engine=Engine("ray", workers=2)))
    assert report is not None
    assert report["samples"] == count
    assert digests(tmp_path / "ray") == digests(tmp_path / "pool")


def _fails(work):
    raise OSError(28, "No space left on device")


def test_ray_makes_the_same_shards(tmp_path):
    pytest.importorskip("ray")
    _equal_shards(tmp_path, 4, 2)


@pytest.mark.long
def test_what_fails_in_a_task_fails_the_run():
    pytest.importorskip("ray")

    class Work:
        items = ()

    with pytest.raises(UserError, match=r"No space left on device"):
        Engine("ray").run([(Work(),)], _fails, lambda items: None)


@pytest.mark.long
def test_ray_makes_the_same_shards_of_two_hundred_clips(tmp_path):
    pytest.importorskip("ray")
    _equal_shards(tmp_path, 200, 16)
