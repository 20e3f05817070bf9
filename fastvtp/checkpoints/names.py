"""Renaming of checkpoint entries."""

import re
from dataclasses import dataclass

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class NameMap:
    """Regular expressions and their replacements. The first of `stems` that matches the start of a name is applied,
    then the first of `parts` that matches after a dot."""

    stems: Rules
    parts: Rules = ()

    def __call__(self, name: str) -> str:
        for rules, place in ((self.stems, r"^"), (self.parts, r"(?<=\.)")):
            for pattern, replacement in rules:
                renamed, count = re.subn(place + pattern, replacement, name, count=1)
                if count:
                    name = renamed
                    break
        return name
