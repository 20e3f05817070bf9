"""A pytest plugin that runs one family's kernel tests, those of most worth first and the rest while there is time.

    pytest -p benchmarks.device.device_order --family attention --until 1700000000 tests/kernels

It is a file of its own, because every worker of pytest-xdist loads it.
"""

import time
from collections import Counter
from collections.abc import Hashable
from typing import Any

import pytest

# Family (folder of fastvtp_kernels) -> what a test's file or name tells it by; the first that fits.
WORDS = {
    "attention": ("attention", "static_buffers", "order_of_its_own", "new_seeds_and_probabilities"),
    "contrastive": ("contrastive", "sigmoid_loss", "hard_negatives"),
    "token_assembly": ("token_assembly", "assemble_tokens"),
    "pixel_loss": ("pixel_loss",),
    "tubelets": ("tubelet",),
    "segments": ("segments",),
    "masking": ("mask",),
}
COMMON = "common"
DEVICE_TESTS = "test_cuda_kernels.py"
# The reason of a test that was left out for want of time, as the counts know it.
LEFT_OUT = "no time left"
ESSENTIAL = pytest.StashKey[bool]()


def family_of(node: str) -> str:
    """Return the family that a test id speaks of; COMMON if none, and then it is every family's."""
    return next((family for family, words in WORDS.items() if any(word in node for word in words)), COMMON)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Give pytest the options of this plugin."""
    group = parser.getgroup("fastvtp")
    group.addoption("--family", choices=tuple(WORDS), help="run the tests of this family of ops alone")
    group.addoption("--until", type=float, help="start only essential tests after this time.time()")
    group.addoption("--most", type=int, help="run no more tests than this")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put essential tests first: what only a device can show, each tile once, each test function once."""
    family = config.getoption("family")
    kept = [item for item in items if family is None or family_of(item.nodeid) in (family, COMMON)]
    seen: Counter[Hashable] = Counter()
    ranks: dict[pytest.Item, tuple[int, int]] = {}
    for item in kept:
        group = _group(item)
        ranks[item] = (0 if item.path.name == DEVICE_TESTS else 1 if seen[group] == 0 else 2, seen[group])
        seen[group] += 1
        item.stash[ESSENTIAL] = ranks[item][0] < 2
    kept = sorted(kept, key=ranks.__getitem__)[: config.getoption("most")]
    dropped = set(items) - set(kept)
    items[:] = kept
    if dropped:
        config.hook.pytest_deselected(items=list(dropped))


def _group(item: pytest.Item) -> Hashable:
    """Return what a test shares with its like: its function, and its tile where it has one."""
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    tile = str(parameters["tile"]) if "tile" in parameters else ""
    return item.path.name, getattr(item, "originalname", item.name), str(parameters.get("kernel", "")), tile


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is not essential once the time is over."""
    until = item.config.getoption("until")
    if until is not None and not item.stash[ESSENTIAL] and time.time() > until:
        pytest.skip(LEFT_OUT)
