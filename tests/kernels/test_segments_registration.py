"""The sums of rows as torch's dispatcher sees them."""

from typing import Any

import pytest

pytest.importorskip("triton")
import torch

from tests.kernels import registration_checks
from tests.kernels.triton_cases import DEVICE


def op_cases(device: torch.device) -> dict[str, list[tuple[Any, ...]]]:
    rows, places = (torch.tensor(x, device=device) for x in ([2, 0, 2, 1], [1, 3, 0, 2]))
    starts = torch.tensor([0, 1, 2, 4], dtype=torch.int32, device=device)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    sums = [(x, rows, places, starts, ignored) for ignored in (-1, 2)]
    return {
        "sum_rows": sums,
        "sum_rows_reference": sums,
        "sum_sequences": [(x, starts)],
        "spread_sequences": [(x.detach()[:3], starts, 6, torch.bfloat16)],
    }


def test_every_op_of_the_folder_has_cases():
    registration_checks.check_complete(op_cases(DEVICE), "segments")


def test_opcheck_where_kernels_run():
    registration_checks.check_schemas(op_cases(DEVICE))


def test_meta_tensors_have_the_form_of_real_ones():
    registration_checks.check_meta_tensors(op_cases(DEVICE), op_cases(torch.device("meta")))
