"""What `fastvtp doctor` says about attention: backend and regime of the lengths that users meet."""

import contextlib

import pytest
import torch

from fastvtp import doctor
from fastvtp_kernels import dispatch

with contextlib.suppress(ImportError):
    # Before a test clears TRITON_INTERPRET: it is read when the kernels are imported.
    import fastvtp_kernels.attention.kernels  # noqa: F401


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in (dispatch.ENVIRONMENT_VARIABLE, "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)


def attention_rows(device, monkeypatch):
    monkeypatch.setattr(doctor, "_default_device", lambda: torch.device(device))
    findings = doctor.backend_findings()
    subjects = [finding.subject for finding in findings]
    place = subjects.index("varlen_attention") + 1
    return [(f.subject.split()[0], f.value, f.reason) for f in findings[place : place + 4]]


def test_the_reference_pads_in_buckets_on_the_cpu(monkeypatch):
    expected = ("reference", "padded in buckets of similar length")
    rows = attention_rows("cpu", monkeypatch)
    assert rows == [(length, *expected) for length in ("16", "168", "256", "1568")]


def test_the_kernels_have_three_regimes(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(dispatch, "_triton_cannot_run_on", lambda device: None)
    monkeypatch.setattr(doctor.tuning, "architecture", lambda device: "sm_90")
    assert attention_rows("cuda", monkeypatch) == [
        ("16", "triton", "tiny: several sequences share a tile"),
        ("168", "triton", "forward resident, backward resident"),
        ("256", "triton", "forward resident, backward resident"),
        ("1568", "triton", "forward streaming, backward streaming"),
    ]


def test_a_library_named_for_the_process_is_shown(monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "sdpa")
    assert {row[1:] for row in attention_rows("cpu", monkeypatch)} == {("sdpa", "padded to the longest")}
