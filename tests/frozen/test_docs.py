"""The worked example runs as it stands, on generated clips and a small VideoPrism."""

import re
from pathlib import Path

from fastvtp.architecture import architecture_of
from fastvtp.model_folder import write_model_folder
from tests.frozen.frozen_clips import write_classes
from tests.frozen.towers import make_tower_model

PAGE = Path(__file__).parents[2] / "docs/videoprism_probe.md"


def test_the_code_block_classifies_clips(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    steps = [line for line in block.splitlines() if line and not line.startswith(("import", "from", " "))]
    assert len(steps) + block.count("\n    ") <= 10
    monkeypatch.chdir(tmp_path)
    model = make_tower_model()
    write_model_folder(Path("models/videoprism_base"), model, architecture_of(model).name)
    write_classes(Path("clips/train"), per_class=3)
    write_classes(Path("clips/test"), per_class=2)
    namespace: dict = {}
    exec(compile(block, str(PAGE), "exec"), namespace)
    assert namespace["report"]["classification"]["top"] == {"top1": 100}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    for line in lines[1:]:
        assert re.search(r"clips/test/(\w+)/\d.mp4 \('\1', ", line), line
