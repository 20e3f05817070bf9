"""Which backend runs, and what is said when it cannot."""

import logging

import pytest
import torch

from fastvtp_kernels import BackendUnavailableError, dispatch, tube_mask

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in (dispatch.ENVIRONMENT_VARIABLE, "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)


def test_every_public_op_is_registered_and_has_a_reference():
    assert set(dispatch.ops()) == {
        "assemble_tokens",
        "axial_attention",
        "axial_attention_packed",
        "contrastive_loss",
        "gather_tubelets",
        "hard_negatives",
        "masked_pixel_loss",
        "sigmoid_loss",
        "text_mask",
        "tube_mask",
        "tubelet_embed",
        "varlen_attention",
        "varlen_attention_packed",
    }
    for op in dispatch.ops():
        assert dispatch.resolve_backend(op, None, CPU).name == "reference"


def test_argument_wins_over_environment_wins_over_automatic(monkeypatch):
    assert dispatch.resolve_backend("tube_mask", None, CPU) == ("reference", "cpu tensors")
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "triton")
    with pytest.raises(BackendUnavailableError, match=r"tube_mask: backend 'triton' \(FASTVTP_BACKEND=triton\)"):
        dispatch.resolve_backend("tube_mask", None, CPU)
    assert dispatch.resolve_backend("tube_mask", "reference", CPU) == ("reference", "backend argument")
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "reference")
    assert dispatch.resolve_backend("tube_mask", None, CPU).reason == "FASTVTP_BACKEND=reference"


def test_unavailable_backend_names_op_reason_and_remedy():
    with pytest.raises(BackendUnavailableError) as error:
        tube_mask(1, (2, 2, 2), 0.5, seed=0, backend="triton")
    message = str(error.value)
    assert "\n" not in message
    for part in ("tube_mask", "'triton'", "Triton kernels need a CUDA device, not cpu", "backend='reference'"):
        assert part in message


def test_unknown_backend_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"tube_mask: unknown backend 'tritn' .*'reference', 'triton', 'flash_attn'"):
        tube_mask(1, (2, 2, 2), 0.5, seed=0, backend="tritn")


def test_attention_library_is_refused_elsewhere_but_may_be_named_for_the_process(monkeypatch):
    with pytest.raises(BackendUnavailableError, match="tube_mask has no such backend; it knows reference, triton"):
        dispatch.resolve_backend("tube_mask", "flash_attn", CPU)
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "flash_attn")
    assert dispatch.resolve_backend("tube_mask", None, CPU).name == "reference"
    with pytest.raises(BackendUnavailableError, match=r"'flash_attn' \(FASTVTP_BACKEND=flash_attn\) cannot run: "):
        dispatch.resolve_backend("varlen_attention", None, CPU)


def test_automatic_choice_on_an_accelerator_is_logged_once_per_op(caplog, monkeypatch):
    monkeypatch.setattr(dispatch, "_logged", set())
    with caplog.at_level(logging.WARNING, logger="fastvtp_kernels"):
        for op in ("tube_mask", "tube_mask", "text_mask"):
            choice = dispatch.resolve_backend(op, None, CUDA)
    assert choice.name == "reference"
    assert "no Triton kernel" in choice.reason
    assert [record.getMessage().split()[0] for record in caplog.records] == ["tube_mask", "text_mask"]


def test_doctor_table_says_what_runs_and_why_not():
    table = {row.backend: row for row in dispatch.backends("varlen_attention", CPU)}
    assert list(table) == ["reference", "triton", *dispatch.ATTENTION_BACKENDS]
    assert table["reference"].available
    assert not table["triton"].available
    assert "need a CUDA device, not cpu" in table["triton"].reason
    assert all(row.reason for row in table.values())
    assert [row.backend for row in dispatch.backends("tube_mask")] == ["reference", "triton"]
