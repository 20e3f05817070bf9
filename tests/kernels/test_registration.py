"""The ops of FOLDERS as torch's dispatcher sees them: schemas, fake tensors, compilation, gradients, what is refused.

Run as a script, this file applies opcheck to each on the CPU: in a process that does not interpret, the reference.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
import torch

import fastvtp_kernels as kernels
from fastvtp_kernels.ops import OPS
from tests.kernels import registration_checks
from tests.kernels.triton_cases import DEVICE, IMAGENET

# Folders with many cases have a file of their own; this one answers for all others, new ones too.
FOLDERS = [name for name in OPS if not Path(__file__).with_name(f"test_{name}_registration.py").exists()]
TUBELET = (2, 4, 4)
TRITON: dict[str, Any] = {"backend": "triton"}
OPTIONS: dict[str, Any] = {"tubelet": TUBELET, **IMAGENET, **TRITON}


def arguments(device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What the ops below take, by name; parameters ask for gradients."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()

    video = torch.randint(0, 256, (2, 4, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return {
        "video": video.to(device),
        "index": torch.tensor([[0, 5, 5], [7, 2, 1]], dtype=torch.int32, device=device),
        "rows": torch.tensor([[4, 0, 6], [1, 2, 8]], device=device),
        "ids": torch.tensor([3, 2**40], device=device),
        "order": torch.tensor([3, 0, 4, 2, 1, 5], device=device),
        "dtype": dtype,
        "none": None,
        "packed": leaf(9, 5),
        "weight": leaf(5, 3, *TUBELET),
        "bias": leaf(5),
        "position": leaf(8, 5),
        "places": leaf(6, 5),
        "prediction": leaf(2, 3, 96),
        "visible": leaf(2, 3, 5),
        "token": leaf(5),
    }


def op_cases(device: torch.device) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments of every torch.ops.fastvtp.<name>, without and with what is optional."""
    x = arguments(device)
    grad = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)).to(device)
    options = [list(x) for x in (TUBELET, *IMAGENET.values())]
    embed, loss = (x["video"], x["index"]), (x["prediction"], x["video"], x["index"], list(TUBELET))
    assembled = (x["index"], x["index"].flip(0))
    # Only a loss that will not be differentiated goes without its residual.
    scored = (x["prediction"].detach(), *loss[1:])
    return {
        "tube_mask": [
            (x["ids"], 2, 6, 3, [5, 7], None),
            (x["ids"], 1, 6, 0, [-1, 2**32 - 1], None),
            (x["ids"], 2, 6, 3, [0, 0], torch.tensor([5, 7])),
        ],
        "gather_tubelets": [(*embed, *options, dtype) for dtype in (torch.float32, torch.bfloat16)],
        "tubelet_embed": [
            (*embed, x["weight"], x["bias"], x["position"], *options, torch.float32),
            (*embed, x["weight"], None, None, *options, torch.bfloat16),
        ],
        "tubelet_embed_backward": [
            (grad, *embed, x["weight"].detach(), *options, position) for position in (None, x["position"].detach())
        ],
        "masked_pixel_loss": [
            (*loss, "patch_channel", 1e-6, True),
            (*loss, None, 1e-6, True),
            (*scored, "patch", 1e-6, False),
        ],
        "assemble_tokens": [
            (x["visible"], x["token"], x["position"], *assembled, None),
            (x["visible"], x["token"], x["places"], *assembled, x["order"]),
        ],
        "assemble_tokens_backward": [
            (grad.repeat(1, 2, 1), x["token"].detach(), x[position].detach(), *assembled, x[order], wanted)
            for position, order in (("position", "none"), ("places", "order"))
            for wanted in (True, False)
        ],
    }


EMBED = ("video", "index", "weight", "bias", "position")
# The public ops as functions of the arguments named, under backend="triton".
PUBLIC = {
    "tube_mask": (
        lambda ids: torch.cat(kernels.tube_mask(2, (2, 2, 3), 0.5, seed=5, step=7, sample_ids=ids, **TRITON), dim=1),
        ("ids",),
    ),
    "gather_tubelets": (partial(kernels.gather_tubelets, **OPTIONS), ("video", "index", "dtype")),
    "tubelet_embed": (partial(kernels.tubelet_embed, **OPTIONS), EMBED),
    "tubelet_embed into rows": (
        lambda packed, rows, **x: kernels.tubelet_embed(**x, **OPTIONS, out=packed.clone(), out_rows=rows),
        ("packed", "rows", *EMBED),
    ),
    "masked_pixel_loss": (
        lambda prediction, video, index: (
            3 * kernels.masked_pixel_loss(prediction, video, index, tubelet=TUBELET, **TRITON)
        ),
        ("prediction", "video", "index"),
    ),
    "assemble_tokens": (
        lambda visible, token, position, index: kernels.assemble_tokens(
            visible, token, position, index, index.flip(0), **TRITON
        ),
        ("visible", "token", "position", "index"),
    ),
    "assemble_tokens in an order": (
        lambda visible, token, places, index, order: kernels.assemble_tokens(
            visible, token, places, index % 6, index % 6, permutation=order, **TRITON
        ),
        ("visible", "token", "places", "index", "order"),
    ),
}


def public_ops(without=()):
    cases = {name: case for name, case in PUBLIC.items() if name not in without}
    return pytest.mark.parametrize(("function", "names"), cases.values(), ids=cases)


def chosen(names, **options):
    values = arguments(DEVICE, **options)
    return {name: values[name] for name in names}


def test_every_op_of_these_folders_has_cases():
    registration_checks.check_complete(op_cases(DEVICE), *FOLDERS)
    assert {name.split()[0] for name in PUBLIC} == {name for name in op_cases(DEVICE) if "backward" not in name}


def test_opcheck_where_kernels_run():
    registration_checks.check_schemas(op_cases(DEVICE))


def test_opcheck_on_a_cpu_without_interpreter():
    registration_checks.check_without_interpreter(__file__)


@public_ops()
def test_one_graph_with_the_bits_of_eager(function, names):
    registration_checks.check_one_graph(function, chosen(names))


@public_ops()
def test_fake_tensors_have_the_form_of_real_ones(function, names):
    registration_checks.check_fake_tensors(function, chosen(names, dtype=torch.bfloat16))


def test_meta_tensors_have_the_form_of_real_ones():
    registration_checks.check_meta_tensors(op_cases(DEVICE), op_cases(torch.device("meta")))


@public_ops(without=("tube_mask", "gather_tubelets"))
def test_there_is_no_second_derivative(function, names):
    registration_checks.check_no_second_derivative(function, chosen(names))


@public_ops(without=("tube_mask",))
def test_float64_is_refused_by_name(function, names):
    registration_checks.check_float64_is_refused(function, chosen(names, dtype=torch.float64))


@pytest.mark.parametrize("op", [op for x in FOLDERS for op in OPS[x].dispatched if not op.endswith("_mask")])
def test_float64_on_a_gpu_falls_back_with_one_line(op, caplog, monkeypatch):
    registration_checks.check_float64_falls_back(op, caplog, monkeypatch)


if __name__ == "__main__":
    registration_checks.check_schemas(op_cases(torch.device("cpu")))
