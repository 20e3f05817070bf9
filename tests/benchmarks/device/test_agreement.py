"""The table of agreement: its law, its cases, what it finds broken."""

import json
from functools import partial

import pytest
import torch

from benchmarks.device import agreement
from benchmarks.device.agreement import Case, Truth, cases, columns, faults, kept, refusal, share, table

CPU = torch.device("cpu")
MIXED, CROSSED = ((0, 5, 17, 1), None), ((9, 4, 0), (2, 0, 3))
OTHERS = ("reference", "sdpa", "sdpa math", "flex")


@pytest.mark.parametrize("options", agreement.OPTIONS)
@pytest.mark.parametrize("lengths", [MIXED, CROSSED], ids=["mixed", "crossed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_whoever_can_be_had_on_a_cpu_agrees(options, lengths, dtype):
    case = Case("", *lengths, 16, dtype, CPU, tuple(agreement.OPTIONS[options].items()))
    truth, found = Truth(case), columns(CPU)
    assert set(OTHERS) <= set(found)
    for name in OTHERS:
        cell = agreement._cell(partial(truth.share, found[name]))
        if name.startswith("sdpa") and "softcap" in options:
            assert "no softcap" in str(cell)
        else:
            assert not isinstance(cell, str), (name, cell)
            assert cell <= 1, name


@pytest.mark.parametrize("options", agreement.OPTIONS)
@pytest.mark.parametrize("lengths", [MIXED, CROSSED], ids=["mixed", "crossed"])
def test_the_truth_is_the_specification(options, lengths):
    case = Case("", *lengths, 8, torch.float64, CPU, tuple(agreement.OPTIONS[options].items()))
    for found, expected in zip(
        *(agreement.results(run, case.rows(), True) for run in (partial(agreement.plain, case), specification(case))),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def specification(case):
    return partial(case.call, "specification")


def test_the_law_is_twice_the_own_error_and_two_roundings():
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    plain = torch.tensor([1.0, 2.25])
    rounding = 2 * torch.finfo(torch.float32).eps * 2
    assert share(torch.tensor([1.0, 2.5]), plain, exact) == pytest.approx(0.5 / (0.5 + rounding))
    assert share(torch.tensor([1.0, 2.0]), plain, exact) == 0
    assert share(torch.tensor([1.0, float("nan")]), plain, exact) == float("inf")
    assert share(torch.tensor([1.0]), plain, exact) == share(plain.double(), plain, exact) == float("inf")


def test_what_is_wrong_is_found_in_the_output_and_in_a_gradient():
    truth = Truth(Case("", *MIXED, 16, torch.float32, CPU))

    def louder(case, query, key, value):
        return 1.01 * case.call("reference", query, key, value)

    def deaf(case, query, key, value):
        return case.call("reference", query, key.detach(), value) + 0 * key.sum()

    assert truth.share(louder) > 1
    assert truth.share(deaf) > 1


def test_dropout_keeps_what_it_should_and_refusals_have_names():
    assert kept("reference", 0.5, CPU, 32) < agreement.MOST_DEVIATIONS
    for what in agreement.REFUSED:
        assert refusal(what, CPU) == ""


def test_cases_cover_edges_widths_and_dtypes_most_worth_first():
    found = cases(CPU, smoke=False)
    assert {case.width for case in found} == set(agreement.WIDTHS)
    assert {case.dtype for case in found} == {torch.bfloat16, torch.float16, torch.float32}
    assert {length for case in found for length in case.lengths} >= {0, 1, 31, 32, 33, 63, 64, 65, 511, 512, 513}
    assert {case.width for case in found[: len(agreement.LENGTHS) * len(agreement.OPTIONS)]} == {64}
    assert len({case.label for case in found}) == len(found)


def test_ours_alone_can_break_the_table():
    rows = [
        {"case": "a", "limit": 1.0, "cells": {"triton": 0.5, "flash_attn": 3.0}},
        {"case": "b", "limit": 1.0, "cells": {"triton": float("inf"), "reference": "RuntimeError: out of memory"}},
        {"case": "c", "limit": 1.0, "cells": {"triton": "ValueError: heads are 264 wide, up to 256", "flex": "no"}},
    ]
    assert faults(rows) == ["b: triton: inf", "b: reference: RuntimeError: out of memory"]
    assert table(rows).splitlines() == [
        "| case | triton | flash_attn | reference | flex |",
        "| --- | --- | --- | --- | --- |",
        "| a | 0.50 | **3.00** |  |  |",
        "| b | **inf** |  | no (1) |  |",
        "| c | no (2) |  |  | no (3) |",
        "",
        "1. RuntimeError: out of memory",
        "2. ValueError: heads are 264 wide, up to 256",
        "3. no",
    ]


def test_the_command_prints_writes_and_fails_with_ours(tmp_path, capsys, monkeypatch):
    made = [Case("one", *MIXED, 16, torch.float32, CPU)]
    monkeypatch.setattr(agreement, "cases", lambda device, smoke: made)
    monkeypatch.setattr(agreement, "columns", lambda device: {"reference": partial(agreement._ours, "reference")})
    path = tmp_path / "agreement.json"
    assert agreement.main(["--smoke", "--json", str(path)]) == 0
    assert "| one, 16 wide, float32 | 0." in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    assert [row["case"] for row in rows] == [
        *(f"refuses {what}" for what in agreement.REFUSED),
        *(f"dropout {probability}, deviations" for probability in agreement.DROPPED),
        "one, 16 wide, float32",
    ]
    monkeypatch.setattr(agreement, "columns", lambda device: {"reference": lambda case, *rows: 0 * sum(rows)})
    assert agreement.main(["--smoke", "--json", str(path)]) == 1
    assert "broken:\none, 16 wide, float32: reference: " in capsys.readouterr().out
    assert json.loads(path.read_text())["rows"][-1]["reference"] > 1
