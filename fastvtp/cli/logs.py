"""The log of commands on a terminal or in a file, beside the progress bars that are drawn there."""

import logging
import sys
from typing import Any


class LinesBesideBars(logging.StreamHandler):
    """Writes each log line to stderr on a line of its own, though a bar of tqdm is drawn there.

    On a terminal the bar makes room and is drawn again below. In a file, which nothing can be taken back from, the line
    comes after the bar as it stood.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._after: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. What fails in that ends nothing: it is said as `logging.Handler.handleError` says it."""
        tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)  # who draws no bar need not import it
        try:
            if tqdm is None:
                super().emit(record)
            else:
                with tqdm.get_lock():  # other threads make, draw and close bars
                    self._emit_beside(record, tqdm)
        except Exception:
            self.handleError(record)

    def _emit_beside(self, record: logging.LogRecord, tqdm: Any) -> None:
        # one that another thread is making has no attributes yet, and is not drawn
        bars = [bar for bar in list(getattr(tqdm, "_instances", ())) if not getattr(bar, "disable", True)]
        if not bars:
            super().emit(record)
        elif self.stream.isatty():
            with tqdm.external_write_mode(file=self.stream):
                super().emit(record)
        else:
            drawn = [(id(bar), getattr(bar, "last_print_t", None), getattr(bar, "postfix", None)) for bar in bars]
            if drawn != self._after:  # since the last line: what is drawn in place ends no line
                self.stream.write("\n")
            self._after = drawn
            super().emit(record)


def log_to_stderr(level: int, form: str) -> None:
    """Write the log to stderr from `level` on, in lines of the form `form`, unless something else does already."""
    logging.basicConfig(level=level, format=form, handlers=[LinesBesideBars()])
