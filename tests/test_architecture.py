"""The shape of the house holds, and each check of `tests.house` finds what it is for in a made-up tree."""

from pathlib import Path

import pytest

from tests.house import (
    CHECKS,
    OP_FILES,
    absolute_imports_of_itself,
    circles,
    forbidden_references,
    foreign_imports_of_kernels,
    guesses,
    left_unformatted,
    models_that_need_training,
    systems_named_outside,
    too_long,
    too_many_parameters,
    unknown_rooms,
    unreadable_imports,
    wrong_directions,
    wrong_rooms,
)

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_this_tree(check):
    assert check(ROOT) == []


# --- The checks can fail


@pytest.fixture
def tree(tmp_path) -> Path:
    """A tree that is small and in order."""
    for name in OP_FILES:
        put(tmp_path, f"{K}/masking/{name}", "import torch\n")
    put(tmp_path, "fastvtp/errors.py", "import difflib\n")
    put(tmp_path, "fastvtp/modules/a.py", "from . import layers\nfrom ..errors import Bad\n")
    put(tmp_path, "fastvtp/modules/layers.py", "from fastvtp_kernels import masked_pixel_loss\n")
    put(
        tmp_path,
        "fastvtp/training/loop.py",
        '"""The loop that trains a SimVTP, too."""\nfrom fastvtp.modules import a\n',
    )
    for name in ("videomae", "simvtp", "alpro"):
        put(tmp_path, f"{S}/{name}/model.py", "from fastvtp.modules import layers\n")
        put(tmp_path, f"{S}/{name}/tasks.py", "from fastvtp.training import loop\nfrom . import model\n")
        put(tmp_path, f"{S}/{name}/system.py", "from . import model\ndef runs():\n    from . import tasks\n")
    put(tmp_path, f"{S}/simvtp/retrieval.py", "class T:\n    name = 'pretrain_towers'\nx = f(name='towers_of_two')\n")
    put(tmp_path, f"{S}/alpro/plan.py", "from fastvtp.training import loop\n")
    put(tmp_path, f"{S}/catalogue.py", "from fastvtp.systems.alpro import model\n")
    put(tmp_path, "fastvtp/cli/main.py", "def main():\n    from fastvtp.systems import catalogue\n")
    put(tmp_path, "benchmarks/harness/case.py", "import fastvtp_kernels\n")
    put(tmp_path, "benchmarks/ops/masking.py", "from benchmarks.harness import case\nfrom fastvtp.modules import a\n")
    for check in CHECKS:
        assert check(tmp_path) == []
    return tmp_path


def put(tree: Path, name: str, text: str):
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


K, M, S = "kernels/fastvtp_kernels", "fastvtp/modules", "fastvtp/systems"
WIDE = "def f({}): ...\n".format(", ".join("abcdefghi"))


@pytest.mark.parametrize(
    ("check", "name", "text", "fault"),
    [
        (
            wrong_directions,
            f"{M}/b.py",
            "from fastvtp.training import loop\n",
            "modules.b imports fastvtp.training.loop",
        ),
        (wrong_directions, f"{M}/b.py", "def f():\n    from fastvtp.training import loop\n", "fastvtp.training.loop"),
        (
            wrong_directions,
            f"{M}/b.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..training import loop\n",
            "fastvtp.modules.b imports fastvtp.training.loop",
        ),
        (wrong_directions, f"{M}/b.py", "from benchmarks.harness import case\n", "imports benchmarks.harness.case"),
        (wrong_directions, f"{K}/a.py", "import fastvtp.errors\n", "fastvtp_kernels.a imports fastvtp.errors"),
        (
            wrong_directions,
            "fastvtp/training/b.py",
            "from fastvtp.systems.simvtp import model\n",
            "systems.simvtp.model",
        ),
        (wrong_directions, f"{S}/alpro/b.py", "from fastvtp.systems.simvtp import model\n", "systems.simvtp.model"),
        (wrong_directions, f"{S}/videomae/b.py", "from ..simvtp import model\n", "fastvtp.systems.simvtp.model"),
        (wrong_directions, f"{S}/alpro/b.py", "def f():\n    from .. import catalogue\n", "fastvtp.systems.catalogue"),
        (wrong_directions, f"{S}/alpro/weights.py", "from fastvtp.training import loop\n", "fastvtp.training.loop"),
        (wrong_directions, "benchmarks/harness/b.py", "from ..ops import masking\n", "imports benchmarks.ops.masking"),
        (wrong_directions, "fastvtp/evaluation/b.py", "from fastvtp.cli import main\n", "imports fastvtp.cli.main"),
        (wrong_directions, f"{S}/alpro/b.py", "from fastvtp.cli import main\n", "imports fastvtp.cli.main"),
        (wrong_directions, f"{K}/a.py", "import benchmarks.harness.case\n", "imports benchmarks.harness.case"),
        (
            wrong_directions,
            f"{M}/b.py",
            "import importlib\nx = importlib.import_module('fastvtp.training.loop')\n",
            "imports fastvtp.training.loop",
        ),
        (wrong_directions, f"{M}/b.py", "x = __import__('fastvtp.training.loop')\n", "imports fastvtp.training.loop"),
        (
            unreadable_imports,
            f"{M}/b.py",
            "from importlib import import_module\nx = import_module(f'fastvtp.{1}')\n",
            "fastvtp.modules.b imports what a text says",
        ),
        (
            models_that_need_training,
            f"{S}/alpro/system.py",
            "from . import plan\n",
            "alpro.system -> fastvtp.systems.alpro.plan -> fastvtp.training.loop",
        ),
        (unknown_rooms, "fastvtp/novel/a.py", "", "fastvtp/novel: say in LAW"),
        (
            foreign_imports_of_kernels,
            f"{K}/masking/op.py",
            "import numpy\n",
            "fastvtp_kernels.masking.op imports numpy",
        ),
        (foreign_imports_of_kernels, f"{K}/masking/op.py", "def f():\n    import einops\n", "imports einops"),
        (absolute_imports_of_itself, f"{K}/a.py", "from fastvtp_kernels import b\n", f"{K}/a.py:1 imports"),
        (absolute_imports_of_itself, f"{K}/a.py", "import fastvtp_kernels.b\n", f"{K}/a.py:1 imports"),
        (
            circles,
            f"{M}/layers.py",
            "from . import a\n",
            "fastvtp.modules.layers -> fastvtp.modules.a -> fastvtp.modules.layers",
        ),
        (circles, f"{M}/layers.py", "def f():\n    from .a import x\n", "fastvtp.modules.layers"),
        (
            circles,
            "benchmarks/harness/b.py",
            "from ..ops import masking\n",
            "folders benchmarks.harness -> benchmarks.ops",
        ),
        (systems_named_outside, "fastvtp/training/b.py", "class SimVTPTask: ...\n", "training/b.py:1 names SimVTP"),
        (systems_named_outside, "fastvtp/training/b.py", "if name == 'alpro': ...\n", "training/b.py:1 names alpro"),
        (systems_named_outside, "fastvtp/cli/doctor.py", "is_prism = 1\n", "cli/doctor.py:1 names prism"),
        (systems_named_outside, "fastvtp/training/b.py", "f(simvtp=1)\n", "training/b.py:1 names simvtp"),
        (systems_named_outside, "fastvtp/training/b.py", "import x as alpro\n", "training/b.py:1 names alpro"),
        (systems_named_outside, "fastvtp/training/b.py", "async def videomae(): ...\n", "b.py:1 names videomae"),
        (systems_named_outside, "fastvtp/training/b.py", "if name == 'towers_of_two': ...\n", "names towers_of_two"),
        (systems_named_outside, "fastvtp/training/b.py", "if name == 'pretrain_towers': ...\n", "names pretrain_tow"),
        (systems_named_outside, "fastvtp/training/b.py", "f(help='A SimVTP')\n", "training/b.py:1 names SimVTP"),
        (systems_named_outside, "fastvtp/cli/b.py", "f(help=1 if kind == 'alpro' else 2)\n", "cli/b.py:1 names alpro"),
        (guesses, "fastvtp/training/b.py", "x = hasattr(model, 'text')\n", "asks hasattr(model, 'text')"),
        (guesses, "fastvtp/training/b.py", "x = getattr(self.config, 'text', None)\n", "asks getattr(self.config"),
        (too_long, "tests/a.py", "\n" * 401, "tests/a.py has 401 lines"),
        (left_unformatted, f"{M}/b.py", "x = 1  # fmt" + ": skip\n" + "y = 1  # fmt: skip\n" * 60, "61 statements"),
        (left_unformatted, f"{M}/b.py", "# fmt" + ": off\n", "fastvtp/modules/b.py says # fmt"),
        (wrong_rooms, "kernels/__init__.py", "", "kernels/__init__.py exists"),
        (forbidden_references, "README.md", "see .." + "/shared/DESIGN.md", "README.md:1: .." + "/shared"),
        (
            forbidden_references,
            "fastvtp/errors.py",
            "\npath = '/" + "home/me/data'",
            "fastvtp/errors.py:2: /" + "home/m",
        ),
        (forbidden_references, "Makefile", "cd /" + "work/main", "Makefile:1: /" + "work/m"),
    ],
)
def test_a_fault_is_found(check, name, text, fault, tree):
    put(tree, name, text)
    found = check(tree)
    assert len(found) == 1
    assert fault in found[0]


def test_what_people_read_may_name_a_system(tree):
    text = '"""As ALPRO does."""\nimport typer\nx = typer.Option(help="A SimVTP, say.")  # or an ALPRO\n'
    put(tree, "fastvtp/cli/options.py", text)
    put(tree, "fastvtp/cli/doctor.py", 'shape = "whole clip of VideoPrism"\n')
    assert systems_named_outside(tree) == []


def test_what_an_op_lacks_and_what_is_too_much_is_found(tree):
    (tree / K / "masking" / "reference.py").unlink()
    assert wrong_rooms(tree) == ["masking has no reference.py"]
    for number in range(100):
        put(tree, f"tests/{number}.py", "\n" * 181)
    assert too_long(tree) == ["the median file has 181 lines"]
    for number in range(8):
        put(tree, f"tests/{number}.py", WIDE)
    assert too_many_parameters(tree) == []
    put(tree, "tests/8.py", "@triton.jit\n" + WIDE)
    assert too_many_parameters(tree) == []
    put(tree, "tests/9.py", WIDE)
    assert len(too_many_parameters(tree)) == 9
