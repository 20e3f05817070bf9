"""What shards and their lists hold, that they are the same each time, and that what was begun goes on."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image

from fastvtp.data.annotations import load_annotations
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.video.decoding import Video
from fastvtp.errors import UserError
from fastvtp.preparation.engines import Engine
from fastvtp.preparation.reading import read_items
from tests.data.clips import frame_numbers, write_clip, write_lines
from tests.preparation.sets import captioned, decoded, described, digests, members, pictures, quietly, run


def test_a_shard_holds_clips_texts_and_what_is_known(tmp_path):
    write_clip(tmp_path / "a.mp4", 40, fps=10)
    lines = [
        {"video": "a.mp4", "caption": "a man", "id": "one", "start": 1, "end": 2.5, "label": 3, "words": ["ö"]},
        {"video": "a.mp4", "caption": ["a dog", "two dogs"], "id": "two"},
    ]
    report = run(write_lines(tmp_path / "in.jsonl", *lines), tmp_path / "out")
    assert [*members(tmp_path / "out" / "000000.tar")] == [
        "0000000000.mp4", "0000000000.txt", "0000000000.json", "0000000001.mp4", "0000000001.txt", "0000000001.json",
    ]  # fmt: skip
    held = members(tmp_path / "out" / "000000.tar")
    assert frame_numbers(np.stack(decoded(held["0000000000.mp4"]))) == list(range(10, 25))
    assert (held["0000000000.txt"], held["0000000001.txt"]) == (b"a man", b"a dog")
    first, second = described(tmp_path / "out" / "000000.tar")
    assert (first["id"], first["label"], first["words"], first["caption"]) == ("one", 3, ["ö"], ["a man"])
    assert first["source"] == {
        "video": str(tmp_path / "a.mp4"), "start": 1.0, "end": 2.5, "height": 64, "width": 96, "fps": 10.0,
        "seconds": 4.0, "frames": 40, "codec": "h264",
    }  # fmt: skip
    assert first["clip"] == {"height": 64, "width": 96, "fps": 10.0, "seconds": 1.5, "frames": 15, "codec": "h264"}
    assert "start" not in first  # else a reader would cut the clip once more
    assert second["caption"] == ["a dog", "two dogs"]
    assert report is not None
    assert (report["samples"], report["shards"], report["rejected"]["count"]) == (2, 1, 0)


def test_a_span_by_frames_is_cut_to_these(tmp_path):
    write_clip(tmp_path / "a.mp4", 60, fps=10)
    rows = [{"video": "a.mp4", "caption": "x", "start_frame": 7, "end_frame": 30}]
    rows += [{"video": "a.mp4", "caption": "y", "start_frame": 90}]
    write_lines(tmp_path / "train.jsonl", *rows)
    report = run(tmp_path / "train.jsonl", tmp_path / "out")
    files = members(next((tmp_path / "out").glob("*.tar")))
    (told,) = (json.loads(content) for name, content in files.items() if name.endswith(".json"))
    (clip,) = (content for name, content in files.items() if name.endswith(".mp4"))
    with Video(clip) as video:
        assert frame_numbers(video.read(range(video.num_frames))) == list(range(7, 30))
    assert (told["source"]["start"], told["source"]["end"]) == (0.7, 3.0)
    assert not {"start_frame", "end_frame"} & set(told)  # else a reader would cut the clip once more
    assert "span frames 90-end holds no frame of its 60 frames" in json.dumps(report)


def test_the_manifest_says_where_clips_are(tmp_path):
    run(captioned(tmp_path / "in", 3), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "000000.json").read_bytes())
    content = (tmp_path / "out" / "000000.tar").read_bytes()
    assert told["bytes"] == len(content)
    held = members(tmp_path / "out" / "000000.tar")
    for clip in told["clips"]:
        assert content[clip["offset"] : clip["offset"] + clip["bytes"]] == held[f"{clip['key']}.mp4"]


def test_the_list_of_clips_is_that_of_the_source(tmp_path):
    """Questions on one video share one clip; every field of theirs is there; a list without captions keeps its kind."""
    write_clip(tmp_path / "a.mp4", 8)
    rows = [
        {"video": "a.mp4", "question": "who?", "answer": "he", "id": 7},
        {"video": "a.mp4", "question": "what?", "answer": "it", "options": ["it", "he"]},
        {"video": "a.mp4", "question": "when?", "answer": "now", "start": 0.5},
    ]
    rows[0]["id"] = "q7"
    run(write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out")
    listed = [json.loads(line) for line in (tmp_path / "out" / "questions.jsonl").read_text().splitlines()]
    assert [row["video"] for row in listed] == [f"000000.tar::000000000{n}.mp4" for n in (0, 0, 1)]
    assert [{key: value for key, value in row.items() if key != "video"} for row in listed] == [
        {"question": "who?", "answer": "he", "id": "q7"},
        {"question": "what?", "answer": "it", "options": ["it", "he"], "id": "q7"},
        {"question": "when?", "answer": "now", "id": "a.mp4 0.5-end"},
    ]
    both, one = described(tmp_path / "out" / "000000.tar")
    assert [line["answer"] for line in both["lines"]] == ["he", "it"]
    assert one["answer"] == "now"


def test_the_first_class_is_a_class(tmp_path):
    write_clip(tmp_path / "0.mp4", 8)
    report = run(write_lines(tmp_path / "in.jsonl", {"video": "0.mp4", "label": 0}), tmp_path / "out")
    assert report is not None
    assert report["list"] == "classes.jsonl"


def test_videos_without_a_caption_are_not_among_captions(tmp_path, caplog):
    rows = [{"video": f"{n}.mp4", "caption": text} for n, text in enumerate(("a", "", "c"))]
    for n in range(3):
        write_clip(tmp_path / f"{n}.mp4", 8)
    report = run(write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out")
    assert report is not None
    assert (report["samples"], report["list"]) == (2, "captions.jsonl")
    assert [record.id for record in load_annotations(tmp_path / "out")] == ["0.mp4", "2.mp4"]
    assert "in.jsonl: 1 empty caption is left out" in caplog.text


def test_videos_of_a_folder_without_a_caption_file_are_named(tmp_path, caplog):
    for name in ("a", "sub/b", "c", "d"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_clip(tmp_path / "in" / f"{name}.mp4", 8)
    (tmp_path / "in" / "c.txt").write_text("a cat")
    (tmp_path / "in" / "d.txt").touch()
    assert [item.id for item in read_items(tmp_path / "in")] == ["c"]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == (
        f"{tmp_path}/in: no caption file beside 2 of 4 videos: a.mp4 (expected a.txt), sub/b.mp4; "
        "1 caption file without a text: d.txt; left out"
    )


def test_lines_that_say_something_else_are_not_in_the_list(tmp_path, caplog):
    rows = [{"video": f"{n}.mp4", **said} for n, said in enumerate(({"label": 1}, {"caption": "b"}, {"caption": "c"}))]
    for n in range(3):
        write_clip(tmp_path / f"{n}.mp4", 8)
    report = run(write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out")
    assert report is not None
    assert (report["samples"], report["list"]) == (3, "captions.jsonl")
    assert "captions.jsonl: leaves out 1 line of another kind than most" in caplog.text


def test_captions_are_read_from_the_folder(tmp_path):
    """What comes out is what training reads: the same ids and captions, of clips in shards."""
    source = captioned(tmp_path / "in", 5)
    run(source, tmp_path / "out", per_shard=2)
    before, after = load_annotations(source), load_annotations(tmp_path / "out")
    assert [(record.id, record.captions) for record in after] == [(record.id, record.captions) for record in before]
    assert after[4].video == f"{tmp_path}/out/000002.tar::0000020000.mp4"
    with Video(after[4].video) as video, Video(before[4].video) as plain:
        np.testing.assert_allclose(video.read([3]), plain.read([3]), atol=60)
    assert (tmp_path / "out" / "000002.tar.index.npz").is_file()
    dataset = json.loads((tmp_path / "out" / "dataset.json").read_bytes())
    assert [(shard["url"], shard["nsamples"]) for shard in dataset["shardlist"]] == [
        ("000000.tar", 2), ("000001.tar", 2), ("000002.tar", 1),
    ]  # fmt: skip


def test_folders_and_classes_are_taken(tmp_path):
    for name in ("b/run", "a/jump", "loose"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_clip(tmp_path / f"{name}.mp4", 8)
    assert [item.id for item in read_items(tmp_path)] == ["a/jump", "b/run", "loose"]
    assert read_items(tmp_path)[0].captions == ()
    (tmp_path / "loose.txt").write_text("a loose video\nanother text\n")
    (only,) = read_items(tmp_path)
    assert only.captions == ("a loose video", "another text")
    assert only.lines == ({"id": "loose", "caption": ["a loose video", "another text"]},)
    for name in ("loose.mp4", "loose.txt"):
        (tmp_path / name).rename(tmp_path / "a" / name)
    (only,) = read_items(tmp_path)
    assert only.captions == ("a loose video", "another text")
    (tmp_path / "a" / "loose.txt").unlink()
    assert [item.lines[0]["label"] for item in read_items(tmp_path)] == ["a", "a", "b"]
    (tmp_path / "list.csv").write_text("a/loose.mp4 4\na/jump.mp4 1\n")
    assert [item.lines for item in read_items(tmp_path / "list.csv")] == [({"label": 4},), ({"label": 1},)]


def test_shards_are_those_of_webdataset(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    run(captioned(tmp_path / "in", 3), tmp_path / "out")
    samples = list(webdataset.WebDataset(str(tmp_path / "out" / "000000.tar"), shardshuffle=False))
    assert [(sample["__key__"], sample["txt"]) for sample in samples] == [
        (f"000000000{number}", f"video number {number}".encode()) for number in range(3)
    ]
    assert all(decoded(sample["mp4"]) for sample in samples)


def test_tars_are_prepared_once_more(tmp_path):
    """Tars of others, here of our own without their list: what their texts say is kept, and their clips are read."""
    write_clip(tmp_path / "a.mp4", 16)
    rows = [{"video": "a.mp4", "caption": "a man", "label": 3}, {"video": "a.mp4", "start": 1, "question": "who?"}]
    run(write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "first")
    (tmp_path / "tars").mkdir()
    shutil.copy(tmp_path / "first" / "000000.tar", tmp_path / "tars" / "x.tar")
    items = read_items(tmp_path / "tars")
    assert [item.id for item in items] == ["0000000000", "0000000001"]
    assert items[0].captions == ("a man",)
    assert (items[0].lines[0]["label"], items[1].lines[0]["question"]) == (3, "who?")
    assert [item.video for item in read_items(tmp_path / "tars" / "x.tar")] == [item.video for item in items]
    run(tmp_path / "tars", tmp_path / "second", short_side=32)
    first, second = described(tmp_path / "second" / "000000.tar")
    assert (first["caption"], first["clip"]["height"], second["clip"]["frames"]) == (["a man"], 32, 8)


def test_pictures_and_folders_of_frames_are_taken(tmp_path):
    """A picture becomes a clip of one frame, a folder of numbered pictures a clip of them."""
    frames = pictures(0, 5, 96, 144)
    (tmp_path / "film").mkdir()
    for number, pixels in enumerate(frames):
        Image.fromarray(pixels).save(tmp_path / "film" / f"{number:05d}.png")
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "caption": "a picture"}, {"video": "film", "caption": "a film"}]
    run(write_lines(tmp_path / "in.jsonl", *rows), tmp_path / "out")
    picture, film = described(tmp_path / "out" / "000000.tar")
    assert (picture["clip"]["frames"], film["clip"]["frames"]) == (1, 5)
    assert [record.captions for record in load_annotations(tmp_path / "out")] == [("a picture",), ("a film",)]
    clip = np.stack(decoded(members(tmp_path / "out" / "000000.tar")["0000000001.mp4"]))
    assert np.abs(clip.astype(int) - frames).mean() < 5


def test_published_lists_are_taken(tmp_path):
    """MSR-VTT's json, of which one split is asked for, and whose videos are looked for by their names."""
    (tmp_path / "videos").mkdir()
    for name in ("video0", "video1"):
        write_clip(tmp_path / "videos" / f"{name}.mp4", 8)
    said = {
        "videos": [{"video_id": f"video{n}", "split": "train", "start time": 0, "end time": 9} for n in range(2)],
        "sentences": [
            {"video_id": f"video{n}", "caption": f"text {k}", "sen_id": k} for n in range(2) for k in range(2)
        ],
    }
    (tmp_path / "train_val_videodatainfo.json").write_text(json.dumps(said))
    listed = VideoList(str(tmp_path / "train_val_videodatainfo.json"), videos=str(tmp_path / "videos"))
    report = run(listed, tmp_path / "out")
    assert report is not None
    assert [record.captions for record in load_annotations(tmp_path / "out")] == [("text 0", "text 1")] * 2


def test_what_cannot_be_read_is_rejected_and_said(tmp_path):
    source = captioned(tmp_path / "in", 3)
    (tmp_path / "in" / "1.mp4").write_bytes(b"not a video at all")
    with source.open("a") as file:
        file.write(json.dumps({"video": "gone.mp4", "caption": "x"}) + "\n")
        file.write(json.dumps({"video": "0.mp4", "caption": "x", "start": 77}) + "\n")
    report = run(source, tmp_path / "out")
    assert report is not None
    assert report["samples"] == 2
    assert [(each["id"], each["rule"]) for each in report["rejected"]["clips"]] == [
        ("v1", "unreadable"), ("gone.mp4", "unreadable"), ("0.mp4 77-end", "unreadable"),
    ]  # fmt: skip
    reasons = [each["reason"] for each in report["rejected"]["clips"]]
    assert "not a video" in reasons[0]
    assert reasons[2] == "span 77-end s holds no frame of its 1 s"
    assert [line["id"] for line in map(json.loads, (tmp_path / "out" / "captions.jsonl").open())] == ["v0", "v2"]


def test_nothing_left_is_an_error(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", {"video": "gone.mp4", "caption": "x"})
    with pytest.raises(UserError, match=r"no clip is left \(unreadable 1\); the first, gone.mp4: No such file"):
        run(source, tmp_path / "out")


def test_the_same_again_changes_nothing_and_other_settings_are_refused(tmp_path):
    source = captioned(tmp_path / "in", 5)
    run(source, tmp_path / "out", per_shard=2)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("0*")}
    run(source, tmp_path / "out", per_shard=2)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("0*")} == before
    with pytest.raises(UserError, match=r"out was begun with gop 3, now it is 4: .* go on with --gop 3$"):
        run(source, tmp_path / "out", per_shard=2, gop=4)
    with pytest.raises(UserError, match=r"begun with crf 22, now it is 30"):
        run(source, tmp_path / "out", per_shard=2, crf=30)
    write_lines(source, *source.read_text().splitlines()[:-1])
    with pytest.raises(UserError, match=r"begun with videos 5, now it is 4"):
        run(source, tmp_path / "out", per_shard=2)
    write_lines(source, *source.read_text().splitlines(), {"video": "4.mp4", "caption": "something else"})
    with pytest.raises(UserError, match=r"begun with another list of 5 videos"):
        run(source, tmp_path / "out", per_shard=2)
    with pytest.raises(UserError, match=r"in: is not empty, and no preparation was begun there"):
        run(source, tmp_path / "in")


def test_a_folder_of_another_version_is_refused_in_words_and_stays_as_it_is(tmp_path):
    source = captioned(tmp_path / "in", 2)
    run(source, tmp_path / "out")
    settings = tmp_path / "out" / "settings.json"
    told = json.loads(settings.read_bytes())
    settings.write_text(json.dumps(told | {"format": told["format"] - 1, "settings": told["settings"] | {"gop": 8}}))
    before = digests(tmp_path / "out")
    with pytest.raises(UserError, match=r"out was begun by a version of fastvtp .*: finish it with that version"):
        run(source, tmp_path / "out")
    assert digests(tmp_path / "out") == before


def test_shards_are_the_same_again_and_only_unfinished_ones_are_made(tmp_path):
    """One shard without its manifest, one without its tar, one whose tar broke off, and what a kill left."""
    source = captioned(tmp_path / "in", 8)
    run(source, tmp_path / "out", per_shard=2)
    whole = digests(tmp_path / "out")
    run(source, tmp_path / "other", per_shard=2, running=quietly(engine=Engine(workers=2)))
    assert digests(tmp_path / "other") == whole
    assert len(whole) == 8
    kept = (tmp_path / "out" / "000003.tar").stat().st_mtime_ns
    (tmp_path / "out" / "000000.json").unlink()
    (tmp_path / "out" / "000001.tar").unlink()
    (tmp_path / "out" / "000002.tar").write_bytes(b"")
    (tmp_path / "out" / ".000001.tmp").mkdir()
    (tmp_path / "out" / ".000001.tmp" / "clip.mp4").write_bytes(b"half")
    (tmp_path / "out" / ".dataset.json.1.tmp").write_bytes(b"half")
    run(source, tmp_path / "out", per_shard=2)
    assert digests(tmp_path / "out") == whole
    assert (tmp_path / "out" / "000003.tar").stat().st_mtime_ns == kept
    assert not list((tmp_path / "out").glob(".*"))


def _prepare_alone(source, output, per_shard):
    run(source, output, per_shard, running=quietly(engine=Engine(workers=2)))


def _killed_at_random(source, output, per_shard, kills, most_seconds):
    rng, context = random.Random(0), multiprocessing.get_context("fork")
    for _ in range(kills):
        process = context.Process(target=_prepare_alone, args=(source, output, per_shard))
        process.start()
        time.sleep(rng.uniform(0.3, most_seconds))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for tar in output.glob("*.json"):
            if tar.name[0].isdigit():
                json.loads(tar.read_bytes())  # never half-written


def test_what_a_kill_leaves_of_the_first_file_is_no_preparation(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".settings.json.77.tmp").write_bytes(b"{")
    run(captioned(tmp_path / "in", 1), tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


def test_a_killed_run_goes_on_to_the_same_shards(tmp_path):
    source = captioned(tmp_path / "in", 12)
    run(source, tmp_path / "whole", per_shard=2)
    _killed_at_random(source, tmp_path / "out", 2, 3, 1.2)
    run(source, tmp_path / "out", per_shard=2)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.long
def test_two_hundred_clips_killed_at_random(tmp_path):
    source = captioned(tmp_path / "in", 200)
    run(source, tmp_path / "whole", per_shard=16)
    _killed_at_random(source, tmp_path / "out", 16, 12, 3.0)
    run(source, tmp_path / "out", per_shard=16)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_jobs_of_an_array_share_the_shards(tmp_path):
    """Two jobs do every other shard; the last one writes the list; what they make is what one job makes."""
    source = captioned(tmp_path / "in", 6)
    run(source, tmp_path / "whole", per_shard=2)
    assert run(source, tmp_path / "out", per_shard=2, running=quietly(part=(0, 2))) is None
    assert [path.name for path in sorted((tmp_path / "out").glob("*.tar"))] == ["000000.tar", "000002.tar"]
    assert not (tmp_path / "out" / "dataset.json").exists()
    report = run(source, tmp_path / "out", per_shard=2, running=quietly(part=(1, 2)))
    assert report is not None
    assert report["samples"] == 6
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_jobs_of_an_array_that_decide_together_are_started_twice(tmp_path):
    source = captioned(tmp_path / "in", 4)
    shutil.copy(tmp_path / "in" / "0.mp4", tmp_path / "in" / "3.mp4")
    for part in ((0, 2), (1, 2)):
        assert run(source, tmp_path / "out", 2, quietly(part=part), duplicates="hash") is None
    report = run(source, tmp_path / "out", 2, quietly(part=(0, 2)), duplicates="hash")
    assert report is not None
    assert report["samples"] == 3


def test_a_file_that_hangs_is_rejected(tmp_path, monkeypatch):
    """A pipe that nobody writes to, behind a name in the list."""
    source = captioned(tmp_path / "in", 2)
    (tmp_path / "in" / "0.mp4").unlink()
    os.mkfifo(tmp_path / "in" / "0.mp4")
    report = run(source, tmp_path / "out", running=quietly(file_seconds=20.0))
    assert report is not None
    (rejected,) = report["rejected"]["clips"]
    assert rejected["rule"] in ("lost", "unreadable")
    assert report["samples"] == 1
