"""The kernel package stands alone and imports without anything but torch."""

import subprocess
import sys

import fastvtp_kernels
from fastvtp_kernels import dispatch
from fastvtp_kernels.ops import OPS

WITHOUT_EXTRAS = """
import sys
class Absent:
    names = {"triton", "nvidia", "flash_attn", "xformers", "einops", "safetensors", "fastvtp"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import fastvtp_kernels
assert fastvtp_kernels.tube_mask(1, (1, 2, 2), 0.5, seed=0).masked.shape == (1, 2)
assert not Absent.names & set(sys.modules)
"""


CLASSES = {"BackendUnavailableError", "BlockShapes", "HardNegatives", "Replacement", "TubeMask"}


def test_the_table_holds_every_public_function_and_everything_that_is_registered():
    names = set(fastvtp_kernels.__all__)
    assert all(hasattr(fastvtp_kernels, name) for name in names)
    assert names - CLASSES == {name for folder in OPS.values() for name in folder.functions}
    assert set(dispatch.ops()) == {name for folder in OPS.values() for name in folder.dispatched}
    # in a process of its own: fastvtp registers some, too
    code = "import torch, fastvtp_kernels.ops; print(*torch._C._dispatch_get_all_op_names())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    entered = {name for name in done.stdout.split() if name.startswith("fastvtp::")}
    assert entered == {f"fastvtp::{name}" for folder in OPS.values() for name in folder.registered}


def test_imports_and_runs_without_optional_packages():
    path = str(fastvtp_kernels.__path__[0]).rsplit("/", 1)[0]
    subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], env={"PYTHONPATH": path}, check=True)


def test_every_op_takes_a_backend_last():
    for op in dispatch.ops():
        code = getattr(fastvtp_kernels, op)
        code = getattr(code, "__wrapped__", code).__code__
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        assert arguments[-1] == "backend", op
        assert code.co_kwonlyargcount > 0, op
