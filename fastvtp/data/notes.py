"""What a loader has met in its files, each said in the log once."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastvtp.data.handing_over import GAVE_UP
from fastvtp.data.locations import without_secrets

logger = logging.getLogger(__name__)

_ROUNDED_MS = 1000  # lists round the ends of spans up to whole seconds


class Notes:
    """The bad files of a loader, and what it has said of others.

    Args:
        known_bad: path and reason of files known before.
        train: whether bad files are replaced; otherwise they are left out.

    Attributes:
        bad_files: path and reason of each.
    """

    def __init__(self, known_bad: Mapping[str, str], train: bool):
        self.bad_files = dict(known_bad)
        self._train, self._told_of_cut, self._kinds = train, False, set[str]()

    def bad_file(self, name: str, reason: str) -> None:
        """Note a file that cannot be decoded, or a span that cannot be shown."""
        known = self.bad_files.get(name, "")
        if not known or (known.startswith(GAVE_UP) and "; " not in known):  # PyAV cannot decode some of it either
            self.bad_files[name] = f"{known}; {reason}" if known else reason
            logger.warning("%s: %s; %s", without_secrets(name), reason, "replaced" if self._train else "left out")

    def given_up(self, reasons: Mapping[str, str]) -> None:
        """Note files that PyAV decodes from now on, because DALI failed at them."""
        for path, reason in reasons.items():
            logger.warning("%s: %s", without_secrets(path), reason)
        if self._train:  # the state of a run that may be resumed
            self.bad_files |= reasons

    def beside(self, kind: str | None) -> None:
        """Say of the first file of a kind that PyAV decodes it where another decoder was asked for."""
        if kind and kind not in self._kinds:
            self._kinds.add(kind)
            logger.warning("PyAV decodes in the workers: %s", kind)

    def cut_span(self, source: str, beyond: int) -> None:
        """Say of the first span that ends more than a second after its video, by `beyond` ms, that such are cut."""
        if beyond > _ROUNDED_MS and not self._told_of_cut:
            self._told_of_cut = True
            logger.warning(
                "%s: the span ends %.1f s after its video and is cut there, as are all such; no more are named",
                without_secrets(source),
                beyond / 1000,
            )
