"""The kernel package stands alone and imports without anything but torch."""

import subprocess
import sys

import fastvtp_kernels
from fastvtp_kernels import dispatch

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


CLASSES = {"BackendUnavailableError", "HardNegatives", "TubeMask"}
TORCH_ONLY = {"block_tube_mask", "replace_masked_tokens", "running_cell_mask"}


def test_public_names_are_the_ops():
    names = set(fastvtp_kernels.__all__)
    assert names - CLASSES - TORCH_ONLY == set(dispatch.ops())
    assert all(hasattr(fastvtp_kernels, name) for name in names)


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
