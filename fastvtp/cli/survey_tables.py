"""The report of `fastvtp data check` as tables on the screen."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastvtp.data.formats.lists import WHAT_BECOMES
from fastvtp.errors import counted, few

_SHOWN, _COUNTED = 5, 6


def tables(report: Mapping[str, Any]) -> list[Any]:
    """Return the tables of a report of `fastvtp.data.survey`, for rich to print."""
    made = [_table(f"{report['data']}: {report['kind']}", _of_list(report))]
    if report["probe"] is not None:
        probe = report["probe"]
        made.append(_table(f"{counted(probe['files'], 'file')} opened", _of_files(probe)))
    if report["against"]:
        made.append(_table("shared with other data sets", _of_others(report["against"])))
    if report["malformed"]:
        made.append(_table(f"{_number_malformed(report)}: a run ends at the first", _malformed(report["malformed"])))
    if wrong := [*_unusable(report)]:
        made.append(_table("cannot be used", wrong))
    return made


def _table(title: str, rows: Iterable[Sequence[str]]) -> Any:
    from rich.table import Column, Table
    from rich.text import Text

    # folded: a path that is cut names no file
    rows = list(rows)
    columns = [Column(overflow="fold") for _ in rows[0]]
    table = Table(*columns, title=Text(title), title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*map(Text, row))  # as it is: paths in brackets are no markup
    return table


def _of_list(report: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    spans = f", {report['spans']:,} spans" if report["spans"] else ""
    yield "records", f"{report['records']:,} of {report['videos']:,} videos{spans}"
    yield "files", f"{report['bytes'] / 1e6:,.1f} MB, {len(report['missing']):,} missing{_becomes(report)}"
    if report["probe"] is None:
        yield "opened", "none, so damage and ends of spans are not told: --probe N opens some, --probe all every one"
    if report["not_looked_at"]:
        yield "not looked at", f"{report['not_looked_at']:,} behind URLs: --probe opens them"
    if (captions := report["captions"]) is not None:
        yield "texts", f"{captions['count']:,}, {captions['distinct']:,} distinct, {captions['empty']:,} empty"
        yield "texts a record", _spread(captions["captions_a_record"])
        yield "words a text", _spread(captions["words"])
        if captions["tokens"] is not None:
            yield "tokens a text", _spread(captions["tokens"])
        yield "of several records", counted(captions["of_several_records"], "text")
        yield "not ASCII", f"{captions['not_ascii']:.1%} of the texts"
        directions = f"{captions['name_a_direction']:.1%} of the texts"
        yield "name a direction", f"{directions}; {captions['not_mirrored']:.1%} of the records are never mirrored"
    if (classes := report["classes"]) is not None:
        absent = classes["without_a_video"]
        yield "classes", f"{classes['count']:,}" + (f", without a video: {few(absent)}" if absent else "")
        yield "videos a class", _spread(classes["videos_a_class"])
        spread = classes["videos_a_class"]
        for which in ("largest", "smallest") if spread and spread["min"] < spread["max"] else ():
            yield f"{which} classes", ", ".join(f"{name} {number:,}" for name, number in classes[which].items())
    if (repeated := report["repeated_lines"]) is not None:
        lines = f"{counted(repeated['count'], 'line')} of the same video, span and text as an earlier one"
        yield "repeated", f"{lines}, the first {repeated['first']}"
    if twice := report["same_clip"]:
        yield "the same clip", f"{counted(len(twice), 'time')} in several records: {few(map('='.join, twice))}"
    if ids := report["same_id"]:
        yield "the same id", f"{counted(len(ids), 'id')}, each of several records: {few(ids)}"
    if report["same_bytes"] is not None:
        groups = report["same_bytes"]
        yield (
            "the same bytes",
            f"in {counted(len(groups), 'group')} of files" + (f": {few(map('='.join, groups))}" if groups else ""),
        )


def _becomes(report: Mapping[str, Any]) -> str:
    """Return what a run does with the missing files of a list, of which all are left out or none."""
    return f": {WHAT_BECOMES['drop' if report['left_out'] else 'keep']}" if report["missing"] else ""


def _of_files(probe: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    yield "undecodable", f"{len(probe['undecodable']):,}"
    if probe["seconds"] is None:  # none could be opened
        return
    for name, unit in (("seconds", "s"), ("frames", ""), ("megabytes", "MB"), ("frames_a_keyframe", "")):
        yield name.replace("_", " "), _spread(probe[name], unit)
    yield "decode", f"{_spread(probe['decode_ms'], 'ms')} of one thread for 16 frames, 4 apart"
    for name in ("fps", "sizes", "shapes", "codecs", "rotations"):
        found = list(probe[name].items())
        more = f", {len(found) - _COUNTED} others" if len(found) > _COUNTED else ""
        yield name, ", ".join(f"{value}: {number:,}" for value, number in found[:_COUNTED]) + more
    if late := [f"{video} {span}" for video, spans in probe["spans_past_the_end"].items() for span in spans]:
        yield "past the end", f"{counted(len(late), 'span', 'end')} after the video, whose end counts: {few(late, 1)}"
    odd = ("variable_rate", "interlaced", "mirrored", "pixels_not_square")
    yield "of these", ", ".join(f"{name.replace('_', ' ')} {probe[name]:,}" for name in odd)


def _of_others(others: Iterable[Mapping[str, Any]]) -> Iterable[Sequence[str]]:
    for other in others:
        same = other["same_video"]
        said = f"{len(same):,} of {other['videos']:,} videos" + (f": {few(same)}" if same else "")
        if other["same_bytes"] is not None:
            pairs = ["=".join(pair) for pair in other["same_bytes"]]
            said += f"; the same bytes under another name: {len(pairs):,}" + (f", {few(pairs)}" if pairs else "")
        if "same_captions" in other:
            said += f"; {other['same_captions']:,} texts"
        yield other["data"], said


def _number_malformed(report: Mapping[str, Any]) -> str:
    least = "at least " if report["more_malformed"] else ""
    return f"{least}{counted(len(report['malformed']), 'malformed line')}"


def _malformed(lines: Sequence[str]) -> Iterable[Sequence[str]]:
    yield from ((line,) for line in lines[:_SHOWN])
    if len(lines) > _SHOWN:
        yield (f"and {len(lines) - _SHOWN:,} more: --json names all",)


def _unusable(report: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    probe = report["probe"] or {"undecodable": {}, "spans_without_a_frame": {}}
    spans = {video: f"spans without a frame: {few(told)}" for video, told in probe["spans_without_a_frame"].items()}
    reasons = {**report["missing"], **probe["undecodable"], **spans}
    yield from list(reasons.items())[:_SHOWN]
    if len(reasons) > _SHOWN:
        yield f"and {len(reasons) - _SHOWN:,} more", "--json names all"


def _spread(numbers: Mapping[str, float] | None, unit: str = "") -> str:
    if numbers is None:
        return "none"
    if numbers["min"] == numbers["max"]:
        return f"{numbers['min']:,.4g} {unit}".rstrip() + " each"
    shown = ", ".join(f"{name} {value:,.4g}" for name, value in numbers.items())
    return f"{shown} {unit}".rstrip()
