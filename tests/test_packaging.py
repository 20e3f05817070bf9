"""What users rely on at install time: light imports, no shadowed packages, everything optional absent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = (
    "triton", "nvidia.dali", "av", "tokenizers", "pydantic", "typer", "tqdm", "matplotlib", "PIL",
    "flash_attn", "xformers", "tensorboard",
)  # fmt: skip


def run_python(code: str, **environment: str) -> str:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_and_trains_without_any_optional_package():
    """Blocks every optional package, then builds a model and takes a gradient: the base dependencies must carry it."""
    run_python(f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None  # makes `import name` raise ImportError
import torch
import fastvtp, fastvtp_kernels
assert not torch.cuda.is_available()
model = fastvtp.create_model("simvtp_tiny", image_size=32, num_frames=4, tubelet=(2, 8, 8), depth=1, vocab_size=50,
                             mask_token_id=4, special_token_ids=(0, 1, 2, 3, 4))
plan = model.plan(torch.tensor([2, 7, 8, 3, 2, 9, 10, 11, 3]), (4, 5), torch.arange(2), seed=0, step=0)
output = model(torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8), plan)
output.loss.backward()
assert output.loss.isfinite()
""")


def test_importing_the_package_does_not_import_torch():
    """Every data worker imports fastvtp.data; torch would cost each of them seconds and hundreds of megabytes."""
    out = run_python(
        "import sys, fastvtp.data.source; print([m for m in ('torch', 'av', 'nvidia.dali') if m in sys.modules])"
    )
    assert out.strip() == "[]"


def test_import_time_beyond_torch():
    """Fresh interpreters, best of up to three against machine noise; of this process alone, whoever has the cores."""
    code = """
import time, torch
start = time.process_time()
import fastvtp.systems.catalogue, fastvtp_kernels
print(time.process_time() - start)
"""
    seconds = []
    while len(seconds) < 3 and min(seconds, default=2.0) >= 2.0:
        seconds.append(float(run_python(code)))
    assert min(seconds) < 2.0, seconds


def test_kernels_folder_is_not_a_package():
    """`kernels/__init__.py` would shadow Hugging Face's `kernels` wherever the repository root is on sys.path."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "kernels" / "conftest.py").exists()
    out = run_python("import importlib.util as u; s = u.find_spec('kernels'); print(s.origin if s else None)")
    assert str(ROOT) not in out


def test_version_file_is_import_free():
    """The build reads it without torch."""
    text = (ROOT / "fastvtp" / "version.py").read_text()
    assert "import" not in text.replace("importing", "").replace("without imports", "")


@pytest.mark.parametrize("package", ["fastvtp", "kernels/fastvtp_kernels"])
def test_typed_marker(package):
    assert (ROOT / package / "py.typed").exists()


def test_wheel_holds_both_packages_and_the_template(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, ROOT],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    import zipfile

    (wheel,) = tmp_path.glob("fastvtp-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "fastvtp/py.typed",
        "fastvtp_kernels/py.typed",
        "fastvtp/visualization/gallery.html",
        "fastvtp/preparation/report.html",
        "fastvtp/systems/simvtp/model.py",
    ):
        assert name in names
    assert not any(name.startswith(("kernels/", "tests/")) for name in names)


PICKLES = {"fastvtp/data/workers/shared_slots.py": "what processes of one run share, in memory without a name"}


def test_library_does_not_execute_pickles():
    """Checkpoints are read with safetensors or weights_only=True, everywhere; no pickle comes out of a file."""
    offenders = []
    for path in [*ROOT.glob("fastvtp/**/*.py"), *ROOT.glob("kernels/**/*.py")]:
        if str(path.relative_to(ROOT)) in PICKLES:
            continue
        text = path.read_text()
        if "import pickle" in text or (
            "torch.load(" in text and text.count("torch.load(") != text.count("weights_only=True")
        ):
            offenders.append(str(path))
    assert json.dumps(offenders) == "[]"
