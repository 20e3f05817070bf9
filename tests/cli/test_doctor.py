"""What `fastvtp doctor` says about attention: backend and regime of the lengths that users meet."""

import contextlib
import types
from types import SimpleNamespace

import pytest
import torch

from fastvtp.cli import doctor
from fastvtp_kernels import dispatch
from fastvtp_kernels.attention import choice, limits

with contextlib.suppress(ImportError):
    # Before a test clears TRITON_INTERPRET: it is read when the kernels are imported.
    import fastvtp_kernels.attention.kernels  # noqa: F401

SHAPES = ("8 x 64", "16 x 64", "168 x 64", "168 x 80", "197 x 64", "400 x 64", "1568 x 64", "4096 x 64 softcap")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in (dispatch.ENVIRONMENT_VARIABLE, "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)


def attention_rows(device, monkeypatch):
    monkeypatch.setattr(doctor, "_default_device", lambda: torch.device(device))
    findings = doctor.backend_findings()
    subjects = [finding.subject for finding in findings]
    place = subjects.index("varlen_attention") + 1
    rows = findings[place : place + len(doctor.ATTENTION_SHAPES)]
    return {finding.subject.partition("(")[0].strip(): (finding.value, finding.reason) for finding in rows}


def on_an_accelerator(monkeypatch, architecture):
    pytest.importorskip("triton")
    monkeypatch.setattr(dispatch, "_triton_cannot_run_on", lambda device: None)
    monkeypatch.setattr(doctor.tuning, "architecture", lambda device: architecture)


def test_the_reference_pads_in_buckets_on_the_cpu(monkeypatch):
    rows = attention_rows("cpu", monkeypatch)
    assert tuple(rows) == SHAPES
    assert set(rows.values()) == {("reference", "padded in buckets of similar length")}


def test_the_kernels_have_three_regimes_by_length_width_and_dtype(monkeypatch):
    on_an_accelerator(monkeypatch, "sm_90")
    rows = attention_rows("cuda", monkeypatch)
    tiny, streaming = "tiny: several sequences share a tile", "streaming"
    resident = f"bfloat16: resident: one side of a sequence on chip; float32: {streaming}"
    reasons = (tiny, tiny, resident, streaming, resident, streaming, streaming, streaming)
    assert {shape: reason for shape, (_, reason) in rows.items()} == dict(zip(SHAPES, reasons, strict=True))
    assert {backend for backend, _ in rows.values()} == {"triton"}


def test_tiny_is_what_fits_into_the_tiles(monkeypatch):
    """Heads of 256 in float32 have tiles of 16 rows."""
    on_an_accelerator(monkeypatch, "sm_90")
    wide = doctor.AttentionShape("wide", 20, 256)
    monkeypatch.setattr(doctor, "ATTENTION_SHAPES", (wide,))
    reason = attention_rows("cuda", monkeypatch)["20 x 256"][1]
    assert reason == ("bfloat16: tiny: several sequences share a tile; float32: streaming")


def test_a_measured_library_is_shown(monkeypatch):
    on_an_accelerator(monkeypatch, "sm_90")
    situation = choice.Situation("sm_90", "half", 64, 2048, softcap=False, causal=False, backward=True)
    monkeypatch.setattr(choice, "MEASURED", {situation: ("sdpa",)})
    monkeypatch.setattr(choice, "_architecture", lambda device: "sm_90")
    rows = attention_rows("cuda", monkeypatch)
    expected = "bfloat16: padded to the longest; float32: streaming"
    assert rows["1568 x 64"] == ("sdpa, triton", expected)
    assert rows["400 x 64"][0] == "triton"


def test_a_library_named_for_the_process_is_shown_with_what_it_refuses(monkeypatch):
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "sdpa")
    rows = attention_rows("cpu", monkeypatch)
    assert rows.pop("4096 x 64 softcap") == ("sdpa", "refuses: it has no softcap (softcap=50.0)")
    assert set(rows.values()) == {("sdpa", "padded to the longest")}


def test_what_cannot_run_in_a_dtype_says_why(monkeypatch):
    monkeypatch.setattr(doctor.tuning, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(limits, "imported", lambda *_: (types.SimpleNamespace(flash_attn_varlen_func=_flash), None))
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "flash_attn")
    value, reason = attention_rows("cuda", monkeypatch)["168 x 64"]
    assert value == "flash_attn, none"
    assert reason.startswith("bfloat16: packed rows; float32: varlen_attention: backend 'flash_attn'")


def _flash(softcap):
    raise AssertionError("doctor runs nothing")


@pytest.fixture
def alone(monkeypatch):
    """An environment in which nobody has started several processes."""
    for name in (*doctor.LAUNCH_VARIABLES, "SLURM_PROCID", "SLURM_NTASKS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def process_rows():
    return {finding.subject: (finding.value, finding.reason) for finding in doctor.process_findings()}


def on_gpus(monkeypatch, count, gib):
    monkeypatch.setattr(doctor, "_default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(doctor.torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(doctor.torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=gib * 2**30))
    monkeypatch.setattr(doctor.torch.cuda.nccl, "version", lambda: (2, 27, 5))
    monkeypatch.setattr(doctor.dist, "is_nccl_available", lambda: True)


def test_one_process_makes_no_group(alone, monkeypatch):
    monkeypatch.setattr(doctor, "_default_device", lambda: torch.device("cpu"))
    rows = process_rows()
    assert rows["processes"][0] == "1"
    assert "nobody says RANK and WORLD_SIZE" in rows["processes"][1]
    assert rows["backend"] == ("gloo", "no CUDA device: nothing goes through NCCL")
    assert rows["strategy=auto"] == ("none", "one process")
    assert rows["device"][0] == "cpu"
    assert rows["OMP_NUM_THREADS"] == ("not set", "torchrun sets 1 where nobody sets it")
    assert "Slurm" not in rows


def test_torchrun_s_group_on_gpus(alone, monkeypatch):
    on_gpus(monkeypatch, 4, 80)
    for name, value in {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "MASTER_ADDR": "n1"}.items():
        monkeypatch.setenv(name, value)
    rows = process_rows()
    assert rows["processes"] == ("8, this is 6", "RANK=6 WORLD_SIZE=8 LOCAL_RANK=2 MASTER_ADDR=n1")
    assert rows["backend"] == ("cpu:gloo,cuda:nccl", "NCCL 2.27.5")
    assert rows["device"] == ("cuda:2", "pinned by LOCAL_RANK; this machine has GPUs for 4 processes")
    # half of 80 GiB over the 16 bytes of a parameter
    bound = f"several processes have fsdp2 above {80 * 2**30 / 2 / 16 / 1e9:.2f} billion parameters that AdamW trains"
    assert rows["strategy=auto"] == ("ddp", bound)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert process_rows()["strategy=auto"] == ("none", f"one process; {bound}")


def test_what_would_not_work_is_said(alone, monkeypatch):
    on_gpus(monkeypatch, 2, 80)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "5"}.items():
        monkeypatch.setenv(name, value)
    assert process_rows()["device"] == ("none", "LOCAL_RANK=5, torch sees 2 GPU(s): start fewer processes")
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert process_rows()["processes"] == (
        "none",
        "the environment has WORLD_SIZE='two', expected a number as torchrun sets it",
    )
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert process_rows()["Slurm"][0] == "4 tasks"
    monkeypatch.setattr(doctor.dist, "is_available", lambda: False)
    assert process_rows()["group"][0] == "none"


def test_decoders_are_told_by_codec_and_what_batches_need_of_memory(monkeypatch):
    monkeypatch.setattr(doctor, "_default_device", lambda: torch.device("cpu"))
    found = {finding.subject.strip(): finding for finding in doctor.decoding_findings()}
    assert found["data.decoder=auto"].value == "pyav"
    assert found["h264"].value == "pyav, libav's h264"
    assert "DALI does not decode it" in found["h264"].reason
    assert "data.decoder=dali can too: yuv420p" in found["vp9"].reason
    assert found["memory shared with workers"].value == "442 MiB"  # 3 x 64 x (16 x 224 x 224 x 3 bytes, and some)


def test_nvdec_decodes_what_it_can(monkeypatch):
    monkeypatch.setattr(doctor, "_default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(doctor, "automatic_decoder", lambda device: ("dali", "NVDEC through libnvcuvid"))
    monkeypatch.setattr(doctor, "pairs_on", lambda device: frozenset([("h264", "yuv420p"), ("h264", "yuvj420p")]))
    found = {finding.subject.strip(): finding for finding in doctor.decoding_findings()}
    assert found["h264"].value == "dali, NVDEC"
    assert found["h264"].reason == "yuv420p, yuvj420p; others by pyav, libav's h264"
    assert found["vp9"].value.startswith("pyav, ")
