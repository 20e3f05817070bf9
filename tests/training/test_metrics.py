import json

import pytest

from fastvtp.training.metrics import (
    METRICS_NAME,
    SPEED_NAME,
    MetricsWriter,
    last_record,
)


def write(run_dir, steps, resume_step=0, **options) -> None:
    with MetricsWriter(run_dir, resume_step=resume_step, tensorboard=options.pop("tensorboard", False)) as writer:
        for step in steps:
            writer.write(step, {"loss": float(step)}, {"clips_per_second": 1.0})
        writer.sync()


def steps_in(run_dir, name=METRICS_NAME) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / name).read_text().splitlines()]


@pytest.mark.parametrize("name", [METRICS_NAME, SPEED_NAME])
def test_resuming_drops_what_will_be_written_again(tmp_path, name):
    write(tmp_path, range(1, 6))
    with (tmp_path / name).open("a") as file:
        file.write('{"step": 6, "lo')
    write(tmp_path, [4, 5, 6], resume_step=3)
    assert steps_in(tmp_path, name) == [1, 2, 3, 4, 5, 6]


def test_a_cut_line_is_dropped_even_where_nothing_else_is(tmp_path):
    write(tmp_path, [1, 2])
    with (tmp_path / METRICS_NAME).open("a") as file:
        file.write('{"st')
    write(tmp_path, [3], resume_step=2)
    assert steps_in(tmp_path) == [1, 2, 3]


def test_last_record(tmp_path):
    write(tmp_path, [])
    assert last_record(tmp_path) == {}
    write(tmp_path, [1, 2])
    assert last_record(tmp_path) == {"step": 2, "loss": 2.0}


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, [1, 2], tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0)]
    assert "clips_per_second" in events.Tags()["scalars"]
