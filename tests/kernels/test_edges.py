"""Every kernel compiles whatever its integers are: 1, which Triton makes a constant, odd, and multiples of 16.

And what Triton's own representation of each says: no atomics, and no functions but those of `unit_errors`.
"""

import ast
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels import assemble_tokens, axial_attention, masked_pixel_loss, tubelet_embed, varlen_attention
from tests.kernels.triton_cases import DEVICE, assert_meets_the_law, random_values

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kernels" / "fastvtp_kernels"
KINDS = {"1", "odd", "multiple of 16"}
# Numbers, which users write as whole ones too.
NUMBERS = {"scale", "softcap", "positive_weight", "even", "means[0]", "stds[0]", "eps"}
# What cannot be: by the name of a kernel's integer, the kinds it never takes, and why.
NEVER = {
    # A sequence on chip, or that streams, has 33 rows or more, and so has the way from one outer index to the next.
    **{
        f"{kernel} {name}": {"1"}
        for kernel, tensors in {
            "resident_forward": "qkvo",
            "resident_backward": ("q", "k", "v", "o", "dq", "dk"),
            "stream_forward": "qkvo",
            "stream_backward_queries": ("q", "k", "v", "o", "dq"),
            "stream_backward_keys": ("q", "k", "v", "o", "dk"),
        }.items()
        for name in ("length", *(f"{tensor}_strides[0]" for tensor in tensors))
    },
    # Whole blocks of tokens.
    "_weight_gradient split_tokens": {"1", "odd"},
}


def kind(value: int) -> str:
    return "1" if value == 1 else "multiple of 16" if value % 16 == 0 else "odd" if value % 2 else "other"


def kernels(folder: Path) -> set[str]:
    """Names of the @triton.jit functions that no other calls: what is launched."""
    defined, called = set(), set()
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text())
        origin = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                file = path.parents[node.level - 1].joinpath(*node.module.split(".")).with_suffix(".py")
                origin |= {name.name: file for name in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(x) for x in node.decorator_list):
                defined.add((path, node.name))
                names = {x.func.id for x in ast.walk(node) if isinstance(x, ast.Call) and isinstance(x.func, ast.Name)}
                called |= {(origin.get(name, path), name) for name in names}
    return {name for _, name in defined - called}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each case launched; the process must not interpret, whatever this one does."""
    file = tmp_path_factory.mktemp("edges") / "edges.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-m", "tests.kernels.edge_cases", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(file.read_text())


def test_every_case_compiles(found):
    assert {name: case["error"] for name, case in found.items() if "error" in case} == {}
    assert all(case["launches"] for case in found.values())


def launches(found):
    return [launch for case in found.values() for launch in case["launches"]]


def test_every_kernel_of_the_package_has_a_case(found):
    assert {launch["kernel"] for launch in launches(found)} == kernels(PACKAGE)


def test_every_integer_takes_every_kind(found):
    seen = defaultdict(set)
    for launch in launches(found):
        for name, value in launch["integers"].items():
            if name not in NUMBERS:
                seen[f"{launch['kernel']} {name}"].add(kind(value))
    missing = {name: sorted(KINDS - kinds - NEVER.get(name, set())) for name, kinds in seen.items()}
    assert {name: kinds for name, kinds in missing.items() if kinds} == {}
    assert {name: NEVER[name] & seen[name] for name in NEVER if name not in seen or NEVER[name] & seen[name]} == {}


def test_no_kernel_adds_atomically(found):
    """So no sum depends on the order in which programs run."""
    assert [launch["kernel"] for launch in launches(found) if any("atomic" in x for x in launch["functions"])] == []


def test_functions_with_errors_on_a_device_are_those_of_the_tolerance_law(found):
    """Others need a bound in `unit_errors` and a unit in `unit_injection`."""
    exact = {"math.absf", "math.fma", "math.floor", "math.ceil"}
    functions = {name for launch in launches(found) for name in launch["functions"]}
    assert functions - exact == {"math.exp2", "math.log2", "math.sqrt", "arith.divf"}
    # tl.div_rn, which is exact.
    of_others = {launch["kernel"] for launch in launches(found) if "tt.extern_elementwise" in launch["functions"]}
    assert of_others == set()


def test_a_kernel_without_a_case_is_found(tmp_path):
    helper = "@triton.jit\ndef helper(x): ...\n"
    (tmp_path / "common.py").write_text(helper)
    (tmp_path / "kernels.py").write_text(
        "from .common import helper\n@triton.jit(do_not_specialize=['n'])\ndef new(x, n):\n    helper(x)\n"
        "def launcher(): ...\n"
    )
    assert kernels(tmp_path) == {"new"}
    (tmp_path / "other.py").write_text(helper)
    assert kernels(tmp_path) == {"new", "helper"}


def ones(*shape, dtype=torch.float32):
    return random_values(*shape, dtype=dtype, seed=len(shape))


def ints(*values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


CLIP = torch.full((1, 1, 1, 1, 1), 77, dtype=torch.uint8)
# One of everything: one row, head, value, token, clip, pixel.
ONE = {
    "varlen_attention": (
        varlen_attention,
        {name: ones(1, 1, 1) for name in ("query", "key", "value")} | {"cu_seqlens": ints(0, 1), "max_seqlen": 1},
    ),
    "axial_attention": (axial_attention, {name: ones(1, 1, 1, 1, 1) for name in ("query", "key", "value")}),
    "tubelet_embed": (
        tubelet_embed,
        {
            "video": CLIP.to(DEVICE), "index": ints([0]), "weight": ones(1, 1, 1, 1, 1), "bias": ones(1),
            "position": ones(1, 1), "tubelet": (1, 1, 1), "mean": (0.5,), "std": (0.25,),
        },
    ),
    "masked_pixel_loss": (
        masked_pixel_loss,
        {
            "prediction": ones(1, 1, 1), "video": CLIP.to(DEVICE), "masked": ints([0]), "tubelet": (1, 1, 1),
            "normalize": None,
        },
    ),
    "assemble_tokens": (
        assemble_tokens,
        {
            "visible": ones(1, 1, 1), "mask_token": ones(1), "position": ones(2, 1), "visible_index": ints([1]),
            "masked_index": ints([0]),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize(("function", "inputs"), ONE.values(), ids=ONE)
def test_one_of_everything_meets_the_law(function, inputs):
    assert_meets_the_law(function, inputs)
