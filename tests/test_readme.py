"""The README's Python blocks run as they stand, in order, in one namespace."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert len(blocks) >= 2
    assert namespace["visible"].shape == (2, 160, 768)
    conv, video, mask = namespace["conv"], namespace["video"], namespace["mask"]
    import torch

    mean, std = (torch.tensor(namespace[name]) for name in ("mean", "std"))
    pixels = ((video[:1].float() / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    usual = conv(pixels).flatten(2).mT + namespace["position"]
    torch.testing.assert_close(namespace["visible"][:1], usual[:, mask.visible[0].long()], rtol=1e-4, atol=1e-4)


def test_named_files_exist():
    for name in re.findall(r"`((?:fastvtp|kernels|tests)/[\w/.]*)`", README.read_text()):
        assert (README.parent / name).exists(), name
