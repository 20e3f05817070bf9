"""Published lists of captioned videos."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Iterator
from typing import Any

from fastvtp.data.formats.plain_pickle import plain_pickle
from fastvtp.data.formats.registry import (
    CAPTIONS,
    Row,
    caption,
    document,
    first_of,
    list_format,
    object_of,
    split_name,
    text,
    texts,
)
from fastvtp.data.formats.source import ListSource
from fastvtp.errors import UserError
from fastvtp.files import lines_of, read_text

logger = logging.getLogger(__name__)

_CUT = re.compile(r"(.+)_(\d{6})_(\d{6})")  # of YouTube's clips: <id>_<start>_<end>, in seconds
_CLOCK = re.compile(r"\d\d[.:]\d\d[.:]\d\d([.,]\d+)?")


# --- MSR-VTT


@list_format(
    "MSR-VTT",
    CAPTIONS,
    searched=True,
    splits=True,
    fits=lambda source: source.is_document and {"videos", "sentences"} <= set(source.first),
)
def msrvtt(source: ListSource) -> Iterator[Row]:
    """MSRVTT_data.json: videos with their official split, and 20 sentences each.

    Beside train, val and test of 6513, 497 and 2990 videos: "full", all of them; "7k", train and val; "9k" and "1k-A"
    (jsfusion), the ids of MSRVTT_train.9k.csv and MSRVTT_JSFUSION_test.csv beside the list, which has its own captions.
    """
    asked = split_name(source.listed.split)
    own: dict[str, str] = {}
    for place, video in _entries(source, "videos"):
        name, split = text(video, "video_id", place), split_name(text(video, "split", place))
        own[name] = asked if asked == "full" or (asked == "7k" and split in ("train", "val")) else split
    if asked == "full":
        logger.warning("%s: split 'full' is all of train, val and test, each of which has its own name", source.shown)
    if asked in ("1k-a", "1ka", "jsfusion"):
        for place, row in _csv_beside(source, "MSRVTT_JSFUSION_test.csv"):
            yield Row(place, {**_sentence(row, place), "split": asked})
        return
    if asked == "9k":
        rows = _csv_beside(source, "MSRVTT_train.9k.csv")
        nine = {text(row, "video_id", place) for place, row in rows}
        own = {name: "9k" if name in nine else split for name, split in own.items()}
    for place, said in _entries(source, "sentences"):
        name = text(said, "video_id", place)
        if name not in own:
            raise UserError(f"{place}: field 'video_id': {name!r} is not among the list's videos")
        yield Row(place, {"video": name, "caption": caption(said, "caption", place), "split": own[name]})


@list_format(
    "MSR-VTT 1k-A", CAPTIONS, searched=True, fits=lambda source: source.has_columns("vid_key", "video_id", "sentence")
)
def msrvtt_jsfusion(source: ListSource) -> Iterator[Row]:
    """MSRVTT_JSFUSION_test.csv: one sentence for each of 1000 videos."""
    for place, row in source.rows():
        yield Row(place, _sentence(row, place))


@list_format("MSR-VTT ids", CAPTIONS, searched=True, fits=lambda source: source.cells == ["video_id"])
def msrvtt_ids(source: ListSource) -> Iterator[Row]:
    """MSRVTT_train.7k.csv and .9k.csv of CLIP4Clip: ids, whose sentences are in MSRVTT_data.json beside the list."""
    beside = source.beside("MSRVTT_data.json")
    if beside is None:
        raise UserError(f"{source.shown}: lists ids alone: expected MSRVTT_data.json, with their sentences, beside it")
    said: dict[str, list[Any]] = {}
    for place, sentence in _entries(source.other(beside), "sentences"):
        said.setdefault(text(sentence, "video_id", place), []).append(caption(sentence, "caption", place))
    for place, row in source.rows():
        name = text(row, "video_id", place)
        if name not in said:
            raise UserError(f"{place}: field 'video_id': {beside} has no sentence of {name!r}")
        yield Row(place, {"video": name, "caption": said[name]})


@list_format(
    "MSR-VTT of Frozen",
    CAPTIONS,
    searched=True,
    splits=True,
    fits=lambda source: source.is_document and "image_id" in first_of(source.first.get("annotations")),
)
def msrvtt_frozen(source: ListSource) -> Iterator[Row]:
    """MSR_VTT.json of Frozen in Time, whose splits are the files {train,val,test}_list_<cut>.txt in
    high-quality/structured-symlinks: "train_jsfusion", "val_full", ..."""
    folder = source.folder.parent / "high-quality" / "structured-symlinks"
    lists = {path.stem.replace("_list", ""): path for path in sorted(folder.glob("*_list_*.txt"))}
    asked, names = split_name(source.listed.split), None
    if asked in lists:
        names = set(lines_of(read_text(lists[asked])))
    elif asked not in ("all", "none"):
        raise UserError(f"{source.shown}: no split {asked!r}; {folder} has {', '.join(lists) or 'none'}")
    for place, said in _entries(source, "annotations"):
        name = text(said, "image_id", place)
        if names is None or name in names:
            yield Row(place, {"video": name, "caption": caption(said, "caption", place), "split": asked})


def _sentence(row: dict[str, str], place: str) -> dict[str, Any]:
    return {"video": text(row, "video_id", place), "caption": caption(row, "sentence", place)}


def _csv_beside(source: ListSource, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    if (path := source.beside(name)) is None:
        raise UserError(f"{source.shown}: the split {source.listed.split!r} needs {name} beside the list")
    return source.other(path).rows()


def _entries(source: ListSource, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the objects of a list within a document, each behind its place."""
    entries = document(source, name)
    if not isinstance(entries, list):
        raise UserError(f"{source.shown}: field '{name}': expected a list")
    placed = ((f"{source.shown}, {name}, entry {count}", entry) for count, entry in enumerate(entries, start=1))
    for place, entry in source.faults.entries(placed):
        yield place, object_of(entry, place)


# --- MSVD


@list_format("MSVD captions", CAPTIONS, searched=True, fits=lambda source: source.suffix == ".pkl", splits=True)
def msvd(source: ListSource) -> Iterator[Row]:
    """raw-captions.pkl, {clip: [[word, ...], ...]}, read as plain texts and lists, never executed; its splits are the
    files {train,val,test}_list.txt beside it."""
    split_of: dict[str, str] = {}
    for split in ("train", "val", "test"):
        if (path := source.beside(f"{split}_list.txt")) is not None:
            split_of |= dict.fromkeys(map(str.strip, lines_of(read_text(path))), split)
    videos = ((f"{source.shown}, {name!r}", (name, said)) for name, said in _read_pickle(source).items())
    for place, (name, said) in source.faults.entries(videos):
        if not isinstance(said, list) or not all(isinstance(each, list) for each in said):
            raise UserError(f"{place}: field 'captions': expected a list of them, each a list of words")
        words = [texts({"words": each}, "words", place) for each in said]
        fields = {"video": name, "caption": [" ".join(each) for each in words]}
        yield Row(place, fields | ({"split": split_of[name]} if name in split_of else {}))


@list_format(
    "MSVD",
    CAPTIONS,
    searched=True,
    fits=lambda source: (
        re.fullmatch(r"(train|val|test)_list\.txt", source.path.name) is not None
        and source.beside("raw-captions.pkl") is not None
    ),
)
def msvd_ids(source: ListSource) -> Iterator[Row]:
    """train_list.txt and others: an id a line, whose captions are in raw-captions.pkl beside it."""
    beside = source.beside("raw-captions.pkl")
    if beside is None:
        raise UserError(f"{source.shown}: lists ids alone: expected raw-captions.pkl, with their captions, beside it")
    said = {row.fields["video"]: row.fields["caption"] for row in msvd.read(source.other(beside))}
    for place, line in source.lines():
        if line.strip() not in said:
            raise UserError(f"{place}: field 'video': {beside} has no caption of {line.strip()!r}")
        yield Row(place, {"video": line.strip(), "caption": said[line.strip()]})


def _read_pickle(source: ListSource) -> dict[Any, Any]:
    cure = (
        "expected a pickle of plain texts, lists and dictionaries; save it as JSON lines of video and caption instead"
    )
    with source.open() as file:
        content = file.read()
    try:
        value = plain_pickle(content)
    except Exception as error:  # a damaged pickle may raise any
        raise UserError(f"{source.shown}: {error or type(error).__name__}: {cure}") from None
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{source.shown}: {cure}")
    return value


# --- One line a video


@list_format(
    "VATEX",
    CAPTIONS,
    searched=True,
    columns=("caption",),
    fits=lambda source: {"videoID", "enCap"} <= set(source.first),
)
def vatex(source: ListSource) -> Iterator[Row]:
    """vatex_training_v1.0.json and others: ten English captions of <YouTube id>_<start>_<end>; the Chinese ones by
    columns.caption=chCap."""
    name_of_captions = source.listed.columns.caption or "enCap"
    for place, row in source.objects():
        name, said = text(row, "videoID", place), caption(row, name_of_captions, place)
        cut = _CUT.fullmatch(name)
        whole = None if cut is None else (cut[1], float(cut[2]), float(cut[3]))
        yield Row(place, {"video": name, "caption": said}, whole)


@list_format(
    "LSMDC",
    CAPTIONS,
    searched=True,
    fits=lambda source: (
        source.delimiter == "\t"
        and len(source.cells) == 6
        and all(_CLOCK.fullmatch(cell) for cell in source.cells[1:5])
    ),
)
def lsmdc(source: ListSource) -> Iterator[Row]:
    """LSMDC16_annos_training.csv and others: six columns behind tabs, no header; of clips that are cut already."""
    columns = ("clip_id", "start_aligned", "end_aligned", "start_extracted", "end_extracted", "sentence")
    for place, row in source.rows(quoted=False, columns=columns):
        yield Row(place, {"video": text(row, "clip_id", place), "caption": caption(row, "sentence", place)})


@list_format("WebVid", CAPTIONS, searched=True, fits=lambda source: source.has_columns("videoid", "contentUrl", "name"))
def webvid(source: ListSource) -> Iterator[Row]:
    """results_2M_train.csv and others: of {page_dir}/{videoid}.mp4."""
    for place, row in source.rows():
        name, folder = text(row, "videoid", place), row.get("page_dir", "").strip()
        fields = {"video": f"{folder}/{name}" if folder else name, "caption": caption(row, "name", place)}
        yield Row(place, fields | {"id": name})


@list_format(
    "CC3M",
    CAPTIONS,
    searched=True,
    pictures=True,
    fits=lambda source: (
        source.has_columns("caption", "thumbnailUrl")
        or (source.delimiter == "\t" and len(source.cells) == 2 and source.cells[1].startswith(("http://", "https://")))
    ),
)
def cc3m(source: ListSource) -> Iterator[Row]:
    """Train_GCC-training.tsv, a caption and a URL behind a tab, or Frozen's table with a header; of pictures that bear
    the CRC-32 of their URL for a name."""
    headed = "thumbnailUrl" in source.cells
    rows = source.rows() if headed else source.rows(quoted=False, columns=("caption", "url"))
    for place, row in rows:
        url = text(row, "thumbnailUrl" if headed else "url", place)
        yield Row(place, {"video": str(zlib.crc32(url.encode())), "caption": caption(row, "caption", place)})


@list_format("ClipBERT", CAPTIONS, searched=True, fits=lambda source: {"clip_name", "caption"} <= set(source.first))
def clipbert(source: ListSource) -> Iterator[Row]:
    """The jsonl of retrieval of ClipBERT and ALPRO: clip_name and caption."""
    for place, row in source.objects():
        yield Row(place, {"video": text(row, "clip_name", place), "caption": caption(row, "caption", place)})
