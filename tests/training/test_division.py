"""How a batch is divided: into micro-batches, among processes; and what is said where it cannot be."""

from types import SimpleNamespace

import pytest

from fastvtp.errors import ConfigError, UserError
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.division import ParallelConfig, clips_at_a_time, micro_batches_each, scopes_of


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "expected"), [(8, None, 8), (8, 2, 2), (8, 8, 8), (6, 64, 6), (1, None, 1), (1, 5, 1)]
)
def test_a_micro_batch_is_at_most_the_batch(batch_size, micro_batch, expected):
    assert clips_at_a_time(batch_size, micro_batch) == expected


def test_a_micro_batch_divides_the_batch():
    with pytest.raises(ConfigError) as raised:
        clips_at_a_time(12, 8)
    assert str(raised.value) == "micro_batch=8 does not divide batch_size=12: expected 1, 2, 3, 4, 6 or 12"
    with pytest.raises(
        ConfigError, match=r"micro_batch=64 does not divide batch_size=1000: expected \.\.\., 10, 20, 25"
    ):
        apply_overrides(get_recipe("videoprism_stage1"), ["batch_size=1000"])


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "processes", "expected"),
    [
        (64, None, 1, 1),
        (64, 16, 1, 4),
        (64, 16, 2, 2),
        (64, 16, 4, 1),
        (60, 20, 3, 1),
        (4096, 64, 64, 1),
        (8, 64, 1, 1),
    ],
)
def test_each_process_computes_as_many(batch_size, micro_batch, processes, expected):
    assert micro_batches_each(batch_size, micro_batch, processes) == expected


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "processes", "expected"),
    [
        (64, 16, 3, "3 processes cannot share the 4 micro-batches of 16 clips that batch_size=64 makes: start 1, 2 or "
         "4; or a batch_size that 3 divides"),
        (64, 16, 8, "8 processes cannot share the 4 micro-batches of 16 clips that batch_size=64 makes: start 1, 2 or "
         "4; or set micro_batch to a divisor of 8"),
        (64, None, 4, "4 processes cannot share the 1 micro-batch of 64 clips that batch_size=64 makes: start 1; or "
         "set micro_batch=16, the clips that each computes at a time"),
    ],
)  # fmt: skip
def test_processes_that_do_not_divide_them_are_told_what_would_do(batch_size, micro_batch, processes, expected):
    with pytest.raises(ConfigError) as raised:
        micro_batches_each(batch_size, micro_batch, processes)
    assert str(raised.value) == expected


def test_of_many_divisors_the_largest_are_listed():
    with pytest.raises(ConfigError) as raised:
        micro_batches_each(5040, 1, 11)
    said = str(raised.value).partition("makes: ")[2]
    assert said == (
        "start ..., 420, 504, 560, 630, 720, 840, 1008, 1260, 1680, 2520 or 5040; or a batch_size that 11 divides"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "dp"}, "strategy must be one of auto, none, ddp, fsdp2, hsdp, got 'dp'"),
        ({"strategy": "hsdp"}, "strategy=hsdp needs a shard_size, the processes that share a copy"),
        ({"strategy": "fsdp2", "shard_size": 2}, "strategy=fsdp2 takes no shard_size"),
        ({"shard_size": 2}, "strategy=auto takes no shard_size"),
        ({"strategy": "hsdp", "shard_size": 1}, "shard_size must be at least 2, got 1"),
        ({"param_dtype": "float16"}, "param_dtype must be 'float32' or 'bfloat16', got 'float16'"),
        ({"timeout": 0}, "timeout must be positive, got 0"),
        ({"stop_exit_code": 256}, "stop_exit_code must be from 0 to 255, got 256"),
        ({"timeout": float("inf")}, "timeout must be positive, got inf"),
    ],
)
def test_settings_of_processes_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        ParallelConfig(**settings)
    overrides = [f"parallel.{name}={value}" for name, value in settings.items()]
    with pytest.raises(UserError) as raised:
        apply_overrides(get_recipe("simvtp_tiny"), overrides)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("model", "contrast", "matching", "expected"),
    [
        (SimpleNamespace(), None, None, ("global", "global")),
        (SimpleNamespace(gather_negatives=True), None, None, ("global", "global")),
        (SimpleNamespace(gather_negatives=False), None, None, ("micro_batch", "micro_batch")),
        (SimpleNamespace(gather_negatives=False), "global", None, ("global", "global")),
        (SimpleNamespace(gather_negatives=True), "micro_batch", None, ("micro_batch", "micro_batch")),
        (SimpleNamespace(gather_negatives=True), None, "micro_batch", ("global", "micro_batch")),
        (SimpleNamespace(gather_negatives=False), None, "global", ("micro_batch", "global")),
    ],
)
def test_the_run_has_the_last_word_on_scopes(model, contrast, matching, expected):
    assert scopes_of(model, contrast, matching) == expected


def test_a_setting_that_is_gone_says_what_took_its_place():
    with pytest.raises(ConfigError) as raised:
        apply_overrides(get_recipe("simvtp_tiny"), ["batch_size=4", "accumulate=2"])
    assert str(raised.value) == (
        "accumulate is gone: batch_size is of the whole step, micro_batch of what is computed at a time; where there "
        "was batch_size=B accumulate=2, set batch_size=2*B micro_batch=B"
    )


def test_scopes_are_checked():
    for name in ("contrast_scope", "matching_scope"):
        with pytest.raises(ConfigError, match=f"{name} must be 'global' or 'micro_batch', or none, got 'all'"):
            apply_overrides(get_recipe("simvtp_tiny"), [f"{name}=all"])
    with pytest.raises(ConfigError, match="micro_batch must be at least 2: each text is told apart"):
        apply_overrides(get_recipe("simvtp_tiny"), ["micro_batch=1", "matching_scope=micro_batch"])
    assert apply_overrides(get_recipe("simvtp_tiny"), ["micro_batch=1"]).clips_at_a_time == 1


def test_bfloat16_of_matrices_needs_that_of_the_run():
    with pytest.raises(ConfigError, match=r"parallel\.param_dtype=bfloat16 needs precision=bfloat16"):
        apply_overrides(get_recipe("simvtp_tiny"), ["parallel.param_dtype=bfloat16"])
