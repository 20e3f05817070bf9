"""Reports of evaluations, for screen and disk."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastvtp.data.locations import without_secrets


def bad_file_report(bad_files: Mapping[str, str]) -> dict[str, Any]:
    """Report how many files could not be used, and why not, by path; URLs without users, passwords and signatures."""
    return {"count": len(bad_files), "files": {without_secrets(name): bad_files[name] for name in sorted(bad_files)}}


def scores_report(section: str, scores: Any, bad_files: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """Make a report of `scores`, a dataclass with `count` and `left_out`; why a clip was left out stands in bad_files.

    more: further values of the section.
    """
    values = dataclasses.asdict(scores)
    del values["left_out"]
    num_test = values.pop("count")
    return {section: values | more, "num_test": num_test, "bad_files": bad_file_report(bad_files)}


REPORT_NAME = "report.json"


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON, in a folder that is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def score_lines(report: dict[str, Any]) -> list[str]:
    """Pick the scores of a report that say the most, for the screen."""
    lines = []
    for way, scores in report.get("retrieval", {}).items():
        lines.append(f"{way}: " + "  ".join(f"{name} {value:.1f}" for name, value in scores.items()))
    if (chance := report.get("chance_R1")) is not None:
        lines.append(f"by chance: R1 {chance:.1f}")
    for name, scores in report.get("captioning", {}).items():
        if isinstance(scores, dict):
            lines.append(f"{name}: " + "  ".join(f"{measure} {value:.1f}" for measure, value in scores.items()))
    for section in ("question_answering", "classification"):
        scores = {**report.get(section, {}), **report.get(section, {}).get("top", {})}
        names = ("accuracy", "top1", "top5", "majority", "majority_by_kind", "chance", "text_only")
        if shown := [f"{name} {scores[name]:.1f}" for name in names if scores.get(name) is not None]:
            lines.append("  ".join(shown))
    return lines
