"""Reports of evaluations, for screen and disk."""

import dataclasses
from collections.abc import Mapping
from typing import Any


def bad_file_report(bad_files: Mapping[str, str]) -> dict[str, Any]:
    """How many files could not be used, and why not, by path."""
    return {"count": len(bad_files), "files": dict(sorted(bad_files.items()))}


def scores_report(section: str, scores: Any, bad_files: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """A report of `scores`, a dataclass with `count` and `left_out`; why a clip was left out stands in bad_files.

    more: further values of the section.
    """
    values = dataclasses.asdict(scores)
    del values["left_out"]
    num_test = values.pop("count")
    return {section: values | more, "num_test": num_test, "bad_files": bad_file_report(bad_files)}
