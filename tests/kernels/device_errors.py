"""Runs tests of the kernels with a GPU's errors in Triton's interpreter: a plugin of pytest.

    python -m pytest -p tests.kernels.device_errors --device-errors worst tests/kernels

worst: every 2^x, logarithm, quotient and square root in float32 is wrong by the most that `unit_errors` cites, up or
down as the bits of its operands decide; up, down: all of them that way; uniform: anywhere within the bound, as the bits
decide; exact: none. `make device-errors` runs all. The session fails where no call was changed: the interpreter of
another Triton may have other names for them.
"""

from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest

MODES = ("exact", "worst", "uniform", "up", "down")


class Errors:
    """Holds a mode's errors for one process's session, and what they met there or in its workers."""

    def __init__(self, mode: str) -> None:
        self.mode, self.calls, self._stack = mode, Counter[str](), ExitStack()

    def pytest_sessionstart(self) -> None:
        # Not before: tests/conftest.py says how kernels run, and they are imported with this.
        from tests.kernels.unit_injection import injected

        self.calls = self._stack.enter_context(injected(self.mode))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: Any) -> None:
        self._stack.close()
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["device_errors"] = dict(self.calls)
        elif not self.calls:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.calls.update(getattr(node, "workeroutput", {}).get("device_errors", {}))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        found = ", ".join(f"{count} of {name}" for name, count in sorted(self.calls.items()))
        terminalreporter.write_line(f"changed calls, {self.mode}: {found or 'none, so the session fails'}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device-errors", choices=MODES, default="exact", help="a GPU's errors in Triton's interpreter")


def pytest_configure(config: pytest.Config) -> None:
    mode = config.getoption("--device-errors")
    if mode != "exact":
        config.pluginmanager.register(Errors(mode), "device-errors")
