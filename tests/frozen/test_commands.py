"""The commands on frozen models, from the command line to files."""

import json

import pytest
import torch

from fastvtp.architecture import architecture_of
from fastvtp.evaluation import scoring
from fastvtp.frozen.feature_sets import FeatureSet
from fastvtp.model_folder import write_model_folder
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.videoprism.video_text import VideoTextPrismConfig
from tests.cli.test_main import run
from tests.frozen.frozen_clips import write_classes, write_rows
from tests.frozen.towers import make_tower_model
from tests.systems.videoprism.sizes import SIZES, TEXT

TRAIN = ("steps=40", "batch_size=6", "learning_rate=3e-3", "warmup_steps=5", "num_heads=2", "head_dim=8", "dropout=0.1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and clips of three colours."""
    root = tmp_path_factory.mktemp("frozen")
    model = make_tower_model("videomae")
    write_model_folder(root / "model", model, architecture_of(model).name)
    write_classes(root / "train", per_class=3)
    write_classes(root / "test", per_class=2, names=("red", "blue"))
    return root


@pytest.fixture
def command(capsys, monkeypatch, place):
    """Runs `fastvtp ARGUMENTS` where the model and the clips are; returns what it printed."""
    monkeypatch.chdir(place)

    def call(*arguments, fails=False):
        workers = () if arguments[0] == "localize" else ("--num-workers", "0")
        status, out, err = run(capsys, monkeypatch, *arguments, *workers, "--device", "cpu", "--quiet")
        assert status == (2 if fails else 0), err
        assert not fails or err.count("\n") == 1
        return err if fails else out

    return call


@pytest.fixture
def features(command, place):
    if not (place / "f_train").exists():
        for name in ("train", "test"):
            command("extract", "model", name, "--output", f"f_{name}", "--layers", "0,1", "--views", "2x1")
    return "f_train"


def test_extract_says_what_it_wrote(command, place):
    out = command("extract", "model", "test", "--output", "pooled", "--pool", "frames", "--layers", "0,1")
    assert out.strip() == "4 clips of 1 x 3 x 2 x 32 in pooled; 0 undecodable files"
    again = command("extract", "model", "test", "--output", "pooled", "--pool", "frames", "--layers", "0,1")
    assert again == out
    assert "holds other features (layers [0, 1], expected [])" in command(
        "extract", "model", "test", "--output", "pooled", "--pool", "frames", fails=True
    )


def test_extract_in_bfloat16(command, place):
    """Into float16, which autocast on a CPU cannot stack."""
    for precision in ("float32", "bfloat16"):
        command("extract", "model", "test", "--output", f"f_{precision}", "--precision", precision)
    full, half = (FeatureSet(place / f"f_{precision}").view(0, 0).float() for precision in ("float32", "bfloat16"))
    assert not torch.equal(full, half)
    torch.testing.assert_close(full, half, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("kind", ["attentive", "mlap"])
def test_probe_from_the_cache_and_classify(command, features, place, kind):
    report = json.loads(command("probe", features, *TRAIN, "--kind", kind, "--test", "f_test", "--output", f"p_{kind}"))
    assert report["classification"]["top"] == {"top1": 100}
    assert (report["num_train"], report["num_test"]) == (9, 4)
    assert report == json.loads((place / f"p_{kind}/report.json").read_text())
    lines = [json.loads(line) for line in command("classify", "model", f"p_{kind}", "test", "--top", "1").splitlines()]
    assert [(line["video"].split("/")[-2], *line["classes"]) for line in lines] == [
        (name, name) for name in ("blue", "blue", "red", "red")
    ]
    spans = [{"video": f"test/{name}/0.mp4", "start": 0.5 * half} for name in ("red", "blue") for half in (0, 1)]
    write_rows(place / "spans.jsonl", *spans)
    lines = [json.loads(line) for line in command("classify", "model", f"p_{kind}", "spans.jsonl").splitlines()]
    expected = [f"{place}/test/{name}/0.mp4{span}" for name in ("red", "blue") for span in ("", " 0.5-end s")]
    assert [line["video"] for line in lines] == expected


def test_probe_on_the_fly_with_adapters(command, place):
    videos = ("--train", "train", "--test", "test", "--views", "2x2")
    report = json.loads(
        command("probe", "model", *TRAIN, "flip=false", *videos, "--adapter-dim", "4", "--output", "p_fly")
    )
    assert report["classification"]["top"] == {"top1": 100}
    out = command("classify", "model", "p_fly", "test")
    assert json.loads(out.splitlines()[0])["classes"]["blue"] > 0.4


def test_several_classes_a_clip(command, features, place):
    shown = {"blue": ["cold"], "green": ["cold", "leaf"], "red": []}
    rows = [
        {"video": f"train/{name}/{number}.mp4", "labels": labels}
        for name, labels in shown.items()
        for number in range(3)
    ]
    write_rows(place / "several.jsonl", *rows)
    command("extract", "model", "several.jsonl", "--output", "f_several", "--layers", "0,1")
    report = json.loads(command("probe", "f_several", *TRAIN, "steps=80", "--test", "f_several"))
    assert report["multi_label"]["per_class"] == {"cold": 100, "leaf": 100}
    assert report["multi_label"]["chance"] == pytest.approx(50)
    assert "f_test: no class 'blue' among the 2 classes" in command(
        "probe", "f_several", *TRAIN, "--test", "f_test", fails=True
    )
    rows = [{"video": "train/blue/0.mp4", "labels": ["blue", "red"]}]
    write_rows(place / "mixed.jsonl", *rows)
    command("extract", "model", "mixed.jsonl", "--output", "f_mixed", "--layers", "0,1")
    assert "f_mixed: clips have several classes, those of training one class" in command(
        "probe", features, *TRAIN, "--test", "f_mixed", fails=True
    )


def test_a_recipe_gives_what_no_setting_does(command, place):
    short = ("steps=2", "batch_size=2", "warmup_steps=1")
    command("probe", "model", *short, "--recipe", "ssv2", "--train", "train", "--test", "test", "--output", "p_recipe")
    reading = json.loads((place / "p_recipe/probe.json").read_text())["protocol"]
    assert (reading["sampling"], reading["views"]) == ("uniform", [1, 3])
    command("probe", "model", *short, "--recipe", "charades", "--train", "train", "--output", "p_recipe")
    reading = json.loads((place / "p_recipe/probe.json").read_text())["protocol"]
    assert (reading["sampling"], reading["frame_stride"], reading["views"]) == ("strided", 1, [4, 3])


@pytest.mark.parametrize(
    "arguments",
    [
        ("extract", "model", "test", "--output", "f_stretch"),
        ("probe", "model", "--train", "train"),
        ("classify", "model", "p_fit", "test"),
        ("zeroshot", "model", "test"),
        ("caption", "model", "test"),
        ("answer", "model", "test"),
    ],
)
def test_every_command_that_reads_clips_takes_their_framing(command, features, place, monkeypatch, arguments):
    monkeypatch.setattr("fastvtp.systems.captioner.runs.open_captioning", lambda *_, **__: None)
    if not (place / "p_fit").exists():
        command("probe", features, "steps=1", "num_heads=2", "head_dim=8", "--output", "p_fit")
    error = command(*arguments, "--framing", "stretch", fails=True)
    assert error == "fastvtp: framing must be 'crop' or 'squash', got 'stretch'\n"


def test_the_framing_overrules_that_of_the_model(command, place):
    command("extract", "model", "test", "--output", "f_squash", "--framing", "squash")
    assert FeatureSet(place / "f_squash").description["framing"] == "squash"
    settings = ("steps=1", "num_heads=2", "head_dim=8")
    command("probe", "model", *settings, "--train", "train", "--framing", "squash", "--output", "p_squash")
    described = json.loads((place / "p_squash/probe.json").read_text())
    assert described["protocol"]["framing"] == "squash"
    (place / "p_squash/probe.json").write_text(json.dumps({**described, "protocol": {"fit": "stretch"}}))
    error = command("classify", "model", "p_squash", "test", fails=True)
    assert "p_squash/probe.json: protocol: framing must be 'crop' or 'squash', got 'stretch'" in error


def test_several_crops_of_squashed_frames_stand_in_the_way_of_a_test_alone(command, place, monkeypatch):
    monkeypatch.setattr("fastvtp.model_folder.read_framing", lambda _: "squash")
    settings = ("steps=1", "num_heads=2", "head_dim=8", "--train", "train", "--views", "2x3")
    assert "expected one crop, got 3" in command("probe", "model", *settings, "--test", "test", fails=True)
    command("probe", "model", *settings, "--output", "p_views")
    assert json.loads((place / "p_views/probe.json").read_text())["protocol"]["framing"] == "squash"


def test_a_probe_keeps_to_the_framing_of_its_features(command, place, monkeypatch):
    for name in ("train", "test"):
        command("extract", "model", name, "--output", f"fit_{name}", "--framing", "squash")
    command("extract", "model", "test", "--output", "fit_crop")
    settings = ("steps=1", "num_heads=2", "head_dim=8")
    assert "fit_crop has framing 'crop', fit_train 'squash': extract both alike" in command(
        "probe", "fit_train", *settings, "--test", "fit_crop", fails=True
    )
    command("probe", "fit_train", *settings, "--test", "fit_test", "--output", "p_fits")
    assert json.loads((place / "p_fits/probe.json").read_text())["protocol"]["framing"] == "squash"
    loader, seen = scoring.VideoTextLoader, []

    def watched(*given, **said):
        seen.append(said["reading"].framing)
        return loader(*given, **said)

    monkeypatch.setattr(scoring, "VideoTextLoader", watched)
    for options in ((), ("--framing", "crop")):
        command("classify", "model", "p_fits", "test", *options)
    assert seen == ["squash", "crop"]


def test_segments_by_the_command(command, place):
    lines = [
        {"video": f"{name}/{colour}/{number}.mp4", "duration": 8, "segments": [{"start": 0, "end": 8, "label": colour}]}
        for name, colours, count in (("train", ("blue", "green", "red"), 3), ("test", ("red", "blue"), 2))
        for colour in colours
        for number in range(count)
    ]
    for name in ("train", "test"):
        write_rows(place / f"{name}.jsonl", *(line for line in lines if line["video"].startswith(name)))
        command("extract", "model", f"{name}.jsonl", "--output", f"s_{name}", "--pool", "frames")
    settings = ("steps=80", "batch_size=6", "learning_rate=5e-3", "hidden=16", "warmup_steps=5")
    report = json.loads(
        command("localize", "s_train", "train.jsonl", "s_test", "test.jsonl", *settings, "--output", "head")
    )
    assert report["segments"]["by_threshold"]["0.50"] > 90
    found = [json.loads(line) for line in (place / "head/detections.jsonl").read_text().splitlines()]
    assert {row["labels"][0] for row in found} == {"red", "blue"}
    assert json.loads((place / "head/head.json").read_text())["class_names"] == ["blue", "green", "red"]


def test_boxes_by_the_command(command, place):
    size, box = {"width": 64, "height": 48}, {"box": [8, 4, 56, 44]}
    for name, colours in (("train", ("blue", "green", "red")), ("test", ("red", "blue"))):
        rows = [
            {**size, "video": f"{name}/{colour}/{number}.mp4", "boxes": [{**box, "labels": [colour]}]}
            for colour in colours
            for number in range(2)
        ]
        write_rows(place / f"{name}_boxes.jsonl", *rows)
        command("extract", "model", f"{name}_boxes.jsonl", "--output", f"b_{name}")
    report = json.loads(
        command("localize", "b_train", "train_boxes.jsonl", "b_test", "test_boxes.jsonl", *TRAIN, "steps=60")
    )
    assert report["boxes"]["mean_average_precision"] == 100
    assert report["boxes_outside"] == 0


def test_a_text_model_without_its_vocabulary_still_sees(command, place):
    model = build_model(VideoTextPrismConfig(**SIZES, **TEXT))
    write_model_folder(place / "lvt", model, architecture_of(model).name)
    short = ("steps=2", "batch_size=2", "warmup_steps=1", "num_heads=2", "head_dim=8")
    assert "4 clips of" in command("extract", "lvt", "test", "--output", "f_lvt")
    command("probe", "lvt", *short, "--train", "train", "--test", "test", "--output", "p_lvt")
    assert len(command("classify", "lvt", "p_lvt", "test").splitlines()) == 4
    write_rows(place / "captions.jsonl", {"video": "test/red/0.mp4", "caption": "red"})
    for arguments in (("zeroshot", "lvt", "test"), ("evaluate", "lvt", "captions.jsonl")):
        assert "lvt has no tokenizer.json: texts cannot be read" in command(*arguments, fails=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("probe", "f_train", "stepz=3"), "no setting 'stepz'; did you mean 'steps'?"),
        (("probe", "f_train", "steps=many"), "steps expects int, got 'many'"),
        (("probe", "f_train", "--kind", "best"), "kind must be one of 'attentive', 'linear', 'mlap', got 'best'"),
        (("probe", "f_train", "--adapter-dim", "4"), "f_train holds features: --train, --adapter-dim"),
        (("probe", "f_train", "--framing", "crop"), "--views, --framing are for a model"),
        (("probe", "f_train", "--recipe", "k40"), "no probe recipe 'k40'; did you mean 'k400'?"),
        (("probe", "model"), "to read videos with a model, give --train"),
        (("probe", "f_train", "--test", "pooled"), "pooled has grid [2, 1, 1], f_train [2, 4, 4]: extract both alike"),
        (("extract", "model", "test", "--output", "x", "--layers", "mlap"), "expected fewer layers than the tower's 3"),
        (("extract", "model", "test", "--output", "x", "--layers", "9"), "layers must ascend and be from 0 to 2"),
        (("extract", "model", "test/red", "--output", "x", "--class-names", "n.txt"), "its videos come without labels"),
        (("extract", "n.npz", "test", "--output", "x"), "n.npz is no folder: make one of it first (fastvtp convert n"),
        (("extract", "absent", "test", "--output", "x"), "absent is no folder: expected a run, checkpoint or model"),
        (("zeroshot", "model", "test"), "VideoMAE has no embeddings of clips and texts to compare"),
        (("zeroshot", "model", "test", "--templates", "x"), "templates 'x' are neither a file nor one of"),
        (("classify", "model", "train", "test"), "train holds no probe: it has no probe.json"),
        (("localize", "f_train", "absent.jsonl", "f_test", "absent.jsonl"), "absent.jsonl: no such file"),
    ],
)
def test_user_errors_are_one_line(command, features, place, arguments, message):
    (place / "n.npz").touch()
    if not (place / "pooled").exists():
        command("extract", "model", "test", "--output", "pooled", "--pool", "frames", "--layers", "0,1")
    assert message in command(*arguments, fails=True)


def test_zero_shot_of_a_dual_encoder(command, place):
    from fastvtp.data.wordpiece import CaptionTokenizer
    from fastvtp.systems.simvtp.retrieval import DualEncoderConfig

    tokenizer = CaptionTokenizer.train(["a video of red green blue", "what colour is it ?"], 100)
    torch.manual_seed(0)
    model = build_model(
        DualEncoderConfig(
            image_size=32,
            num_frames=4,
            tubelet=(2, 8, 8),
            width=32,
            depth=1,
            num_heads=2,
            max_text_length=16,
            vocab_size=tokenizer.vocab_size,
            pad_token_id=tokenizer.pad_id,
        )
    )
    write_model_folder(place / "dual", model, "dual_encoder")
    tokenizer.save(place / "dual" / "tokenizer.json")
    report = json.loads(command("zeroshot", "dual", "train", "--templates", "kinetics", "--output", "z"))
    assert report["classification"]["chance"] == pytest.approx(100 / 3)
    assert report["num_test"] == 9
    question = {"question": "what colour is it ?", "options": ["red", "blue"]}
    rows = [{"video": f"train/{name}/0.mp4", "answer": name, **question} for name in ("red", "blue")]
    write_rows(place / "questions.jsonl", *rows)
    report = json.loads(
        command("zeroshot", "dual", "questions.jsonl", "--form", "{question} {option}", "--output", "z")
    )
    assert report["multiple_choice"]["chance"] == 50
    assert len((place / "z/predictions.jsonl").read_text().splitlines()) == 2


def test_the_cache_is_what_it_says(features, place):
    made = FeatureSet(place / features)
    assert (made.num_views, made.description["dtype"], made.description["layers"]) == (2, "float16", [0, 1])


def test_frames_by_time_are_kept_from_features_to_the_probe(command, place):
    for name in ("train", "test"):
        command("extract", "model", name, "--output", f"fps_{name}", "--sampling", "strided", "--fps", "4")
    assert FeatureSet(place / "fps_test").description["fps"] == 4
    error = command("extract", "model", "test", "--output", "fps_test", "--sampling", "strided", fails=True)
    assert "holds other features (frame_stride 1, expected 4, fps 4.0, expected None)" in error
    both = ("--sampling", "strided", "--fps", "4", "--frame-stride", "2")
    error = command("extract", "model", "test", "--output", "fps_both", *both, fails=True)
    assert error == "fastvtp: fps 4 and frame_stride 2 both say how far frames are apart: give one\n"
    command("probe", "fps_train", "steps=1", "num_heads=2", "head_dim=8", "--output", "p_fps")
    assert json.loads((place / "p_fps/probe.json").read_text())["protocol"]["fps"] == 4
    command("classify", "model", "p_fps", "test")
    short = ("steps=1", "batch_size=2", "warmup_steps=1", "num_heads=2", "head_dim=8", "fps=5")
    command("probe", "model", *short, "--recipe", "charades", "--train", "train", "--output", "p_fps")
    kept = json.loads((place / "p_fps/probe.json").read_text())["protocol"]
    assert (kept["fps"], kept["frame_stride"]) == (5, 1)


def test_features_of_windows_have_ids_bounds_and_labels(command, features, place):
    length = FeatureSet(place / "f_test").records  # of whole clips
    command("extract", "model", "test", "--output", "f_windows", "--window", "0.5", "--hop", "0.25", "--layers", "0,1")
    windows = FeatureSet(place / "f_windows")
    assert len(windows) > 2 * len(length)
    own = [record for record in windows.records if record.video == windows.records[0].video]
    assert [record.start for record in own[:3]] == [0, 0.25, 0.5]
    assert {round(record.end - record.start, 6) for record in own} == {0.5}
    assert [record.id for record in own] == [f"{length[0].id} {record.span}" for record in own]
    assert {windows.class_names[label] for (label,) in windows.labels} == {"red", "blue"}
    assert (windows.description["window"], windows.description["hop"]) == (0.5, 0.25)
    assert not torch.equal(windows.view(0, 0), windows.view(1, 0))
    command("probe", "f_windows", "steps=1", "num_heads=2", "head_dim=8", "--output", "p_windows")
    lines = command("classify", "model", "p_windows", "test", "--window", "0.5").splitlines()
    assert json.loads(lines[0])["video"].endswith("0.mp4 0-0.5 s")
    error = command("extract", "model", "test", "--output", "f_no", "--hop", "2", fails=True)
    assert error == "fastvtp: --hop 2 needs --window\n"
