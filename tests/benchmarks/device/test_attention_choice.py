"""Lines of the table of faster libraries from a made-up measurement."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.device.attention_choice import entries, lines, main
from benchmarks.harness.record import Row, write_json
from fastvtp_kernels.attention.choice import Situation


def row(variant: str, seconds: float | None, longest: int = 1568, case: str = "", **changes: Any) -> Row:
    values: dict[str, Any] = {
        "op": "varlen_attention",
        "case": case or f"{longest} tokens each",
        "variant": variant,
        "shape": {"width": 64, "longest": longest},
        "dtype": "bfloat16",
        "direction": "forward",
        "model_bytes": 1,
        "model_flops": 1,
        "floor_s": 1.0,
        "baseline": "padded sdpa",
        "median_s": seconds,
    }
    return Row(**{**values, **changes})


def found(*rows: Row) -> dict[Situation, tuple[str, ...]]:
    return entries(map(asdict, rows), "sm_90")


def situation(length: int = 2048, **changes: Any) -> Situation:
    plain: dict[str, Any] = {"softcap": False, "causal": False, "backward": False}
    return Situation("sm_90", "half", 64, length, **{**plain, **changes})


def test_faster_libraries_come_first_by_speed():
    rows = [row("triton", 1.0), row("backend flash_attn", 0.8), row("backend torch_varlen", 0.7)]
    assert found(*rows, row("backend sdpa", 0.98), row("flash_attn", 0.1), row("reference", 0.1)) == {
        situation(): ("torch_varlen", "flash_attn", "triton")
    }


def test_a_library_must_win_every_case_of_its_situation():
    ragged = "1568 video + 10-32 text tokens"
    rows = [row("triton", 1.0), row("triton", 1.0, 1600, ragged), row("backend flash_attn", 0.5)]
    assert found(*rows) == {}
    assert found(*rows, row("backend flash_attn", 1.1, 1600, ragged)) == {}
    assert found(*rows, row("backend flash_attn", 0.9, 1600, ragged)) == {situation(): ("flash_attn", "triton")}


def test_training_takes_what_repeats_and_has_a_line_for_the_rest():
    rows = [row("triton", 1.0), row("backend torch_varlen", 0.5), row("backend flash_attn", 0.9)]
    for one in rows:
        one.direction = "forward+backward"
    assert found(*rows) == {
        situation(backward=True): ("flash_attn", "triton"),
        situation(backward=True, repeats=False): ("torch_varlen", "flash_attn", "triton"),
    }


def test_a_library_in_any_order_is_for_those_who_waive_the_order():
    variants = {"triton": 1.0, "backend flash_attn": 1.2, "backend flash_attn, any order": 0.7}
    more = {"backend flash_attn_3": 0.6, "backend flash_attn_3, any order": 0.5}
    rows = [row(name, seconds, direction="forward+backward") for name, seconds in (variants | more).items()]
    assert found(*rows) == {situation(backward=True, repeats=False): ("flash_attn_3", "flash_attn", "triton")}


def test_without_a_time_of_the_kernels_or_of_the_library_nothing_follows():
    assert found(row("backend flash_attn", 0.5)) == {}
    assert found(row("triton", 1.0), row("backend flash_attn", None)) == {}
    assert found(row("triton", 1.0, op="other"), row("backend flash_attn", 0.5)) == {}


def test_options_and_lengths_are_told_apart():
    capped = {"width": 64, "longest": 4096, "softcap": 50, "causal": 1}
    rows = [row(name, seconds, 4096, shape=capped) for name, seconds in (("triton", 1.0), ("backend flash_attn", 0.5))]
    assert found(*rows) == {situation(4096, softcap=True, causal=True): ("flash_attn", "triton")}


def test_the_command_prints_the_table_as_python(tmp_path, capsys):
    file = tmp_path / "results.json"
    rows = [row("triton", 1.0), row("backend flash_attn", 0.8)]
    write_json(file, rows, {"device_type": "cuda", "device": "made up"})
    main([str(file), "--architecture", "sm_90"])
    assert capsys.readouterr().out.strip() == lines(found(*rows))
    names: dict[str, Any] = {"Situation": Situation}
    exec(lines(found(*rows)).replace(": dict[Situation, tuple[str, ...]]", ""), names)
    assert names["MEASURED"] == found(*rows)
    assert lines({}) == "MEASURED: dict[Situation, tuple[str, ...]] = {}"


@pytest.mark.parametrize(("change", "said"), [({"schema": 7}, "schema is 7"), ({}, "no CUDA device")])
def test_what_is_no_measurement_of_a_gpu_is_refused(tmp_path, capsys, change, said):
    file = tmp_path / "results.json"
    write_json(file, [], {"device_type": "cpu", "device": "a processor"})
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(SystemExit):
        main([str(file), "--architecture", "sm_90"])
    assert said in capsys.readouterr().err
