"""Reports of frozen evaluation, for screen and disk."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastvtp.scoring import bad_file_report


def with_bad_files(section: str, scores: Any, bad_files: Mapping[str, str]) -> dict[str, Any]:
    """A report of `scores`, a dataclass with `count` and `left_out`; why a clip was left out stands in bad_files."""
    values = dataclasses.asdict(scores)
    del values["left_out"]
    return {section: values, "num_test": values.pop("count"), "bad_files": bad_file_report(dict(bad_files))}
