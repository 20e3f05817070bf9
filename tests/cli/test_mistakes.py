"""Mistakes of a newcomer: one line that names the thing, before any work is done."""

from pathlib import Path

import pytest

from fastvtp.architecture import architectures
from fastvtp.cli.outputs import check_output_file, check_output_folder
from fastvtp.errors import UserError
from tests.cli.test_main import run
from tests.data.clips import write_lines


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.pth").touch()
    write_lines(tmp_path / "list.jsonl", {"video": "a.mp4", "caption": "x"})
    return tmp_path


# what a command opens before it reads is a model that is not there: outputs are looked at before
OUTPUTS = [
    ("evaluate absent list.jsonl --output file", "--output file: is a file, expected a folder"),
    ("evaluate absent list.jsonl --output file/x", "{}/file is no folder"),
    ("visualize absent list.jsonl --output file", "--output file: is a file, expected a folder"),
    ("extract absent list.jsonl --output file", "--output file: is a file, expected a folder"),
    ("probe absent --train list.jsonl --test list.jsonl --output file", "--output file: is a file, expected a folder"),
    ("zeroshot absent list.jsonl --output file", "--output file: is a file, expected a folder"),
    ("caption absent list.jsonl --output folder", "--output folder: is a folder, expected the name of a file"),
    ("answer absent list.jsonl --output file/x.jsonl", "{}/file is no folder"),
    ("entities absent --output folder", "--output folder: is a folder, expected the name of a file"),
    ("data show absent.jsonl --output file/s.png", "--output file/s.png: {}/file is no folder"),
    ("data show absent.jsonl --json folder", "--json folder: is a folder, expected the name of a file"),
    ("plan absent --json folder", "--json folder: is a folder, expected the name of a file"),
    ("ablate simvtp --output file", "--output file: is a file, expected a folder"),
    ("extract absent list.jsonl --output s3://bucket/f", "--output s3://bucket/f: is a URL, expected a folder of this"),
    ("caption absent list.jsonl --output s3://bucket/c.jsonl", "--output s3://bucket/c.jsonl: is a URL, expected a fi"),
    ("plan absent --json gs://b/plan.json", "--json gs://b/plan.json: is a URL, expected a file of this machine"),
    ("convert absent.pth s3://bucket/model", "OUT s3://bucket/model: is a URL, expected a folder of this machine"),
    ("ablate simvtp --output s3://b/a", "--output s3://b/a: is a URL, expected a folder of this"),
]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        *OUTPUTS,
        ("evaluate absent list.jsonl --views 0x3", "views: expected positive (segments, crops), got (0, 3)"),
        ("evaluate absent list.jsonl --views -1x3", "views: expected positive (segments, crops), got (-1, 3)"),
        ("plan simvtp_tiny data.test_views=0x3", "data.test_views: expected positive (segments, crops), got (0, 3)"),
        ("data check list.jsonl --column video", "--column video: expected FIELD=NAME, such as video=path"),
        ("data show list.jsonl --preset official", "--preset official is for recipes, list.jsonl is a data set"),
        ("convert empty.pth out", "empty.pth is empty: 0 bytes, expected weights"),
        (
            "pretrain simvtp_tiny data.train=list.jsonl data.test=none output_dir=file",
            "output_dir=file is a file; give",
        ),
        (
            "pretrain simvtp_tiny data.train=list.jsonl data.test=none output_dir=s3://bucket/run",
            "output_dir=s3://bucket/run: is a URL, expected a folder of this machine",
        ),
    ],
)
def test_a_mistake_is_one_line(capsys, monkeypatch, here, arguments, complaint):
    status, out, err = run(capsys, monkeypatch, *arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert complaint.format(here) in err


def test_an_error_of_the_system_names_the_path_and_no_number(capsys, monkeypatch, here):
    def fail(*_):
        raise PermissionError(13, "Permission denied", str(here / "models"))

    monkeypatch.setattr("fastvtp.systems.recipes.recipe_summaries", fail)
    assert run(capsys, monkeypatch, "recipes")[2] == f"fastvtp: {here}/models: Permission denied\n"


def test_a_negative_seed_of_pictures_is_refused(capsys, monkeypatch, here):
    status, _, err = run(capsys, monkeypatch, "visualize", "absent", "list.jsonl", "--seed", "-1")
    assert status == 2
    assert "'--seed'" in err


def _opens(monkeypatch, scored_by, answers="all"):
    opened = type("Opened", (), {"model": None, "answers": answers})
    monkeypatch.setattr("fastvtp.systems.catalogue.open_model", lambda *_: opened)
    monkeypatch.setattr("fastvtp.architecture.architecture_of", lambda _: type("Known", (), {"scored_by": scored_by}))


@pytest.mark.parametrize("option", ["--top-k", "--train-data"])
def test_an_option_of_other_models_is_refused(capsys, monkeypatch, here, option):
    _opens(monkeypatch, "retrieval")
    status, _, err = run(capsys, monkeypatch, "evaluate", "mine", "list.jsonl", option, "3")
    assert (status, err.count("\n")) == (2, 1)
    assert f"{option} 3: is for models that " in err
    assert err.endswith("mine is none\n")


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("video_captioner", ("--train-data", "train.jsonl")),  # which answers questions where the list has some
        ("alpro_qa", ("--train-data", "train.jsonl")),
        ("alpro_retrieval", ("--top-k", "3")),
    ],
)
def test_an_option_of_a_model_reaches_its_scores(capsys, monkeypatch, here, architecture, options):
    _opens(monkeypatch, architectures()[architecture].scored_by)
    Path("list.jsonl").write_text('{"video": "a.mp4", "question": "what?", "answer": "that"}\n')
    asked = []
    monkeypatch.setattr("fastvtp.evaluation.scoring.evaluate", lambda *_, **given: asked.append(given) or {})
    status, _, err = run(capsys, monkeypatch, "evaluate", "mine", "list.jsonl", "--device", "cpu", *options)
    assert (status, err) == (0, "")
    assert str(asked[0]["train_data"] or asked[0]["protocol"].top_k) == options[1]


@pytest.mark.parametrize(
    ("architecture", "answers", "said"),
    [
        ("video_captioner", None, "is for questions, list.jsonl lists none: its captions are scored"),
        ("alpro_qa", None, "is for open-ended questions, mine chooses among the options of each"),
    ],
)
def test_training_questions_that_nothing_would_look_at_are_refused(
    capsys, monkeypatch, here, architecture, answers, said
):
    _opens(monkeypatch, architectures()[architecture].scored_by, answers)
    Path("list.jsonl").write_text('{"video": "a.mp4", "caption": "a dog"}\n')
    monkeypatch.setattr("fastvtp.evaluation.scoring.evaluate", lambda *_, **given: {})
    status, _, err = run(capsys, monkeypatch, "evaluate", "mine", "list.jsonl", "--train-data", "train.jsonl")
    assert (status, err) == (2, f"fastvtp: --train-data train.jsonl: {said}\n")


def test_training_questions_beside_options_are_refused(capsys, monkeypatch, here):
    _opens(monkeypatch, architectures()["video_captioner"].scored_by)
    line = {"video": "a.mp4", "question": "what?", "answer": "x", "options": ["x", "y"]}
    write_lines(Path("list.jsonl"), line)
    given = ("mine", "list.jsonl", "--train-data", "train.jsonl")
    status, _, err = run(capsys, monkeypatch, "evaluate", *given)
    said = "is for open-ended questions, list.jsonl gives each question its options"
    assert (status, err) == (2, f"fastvtp: --train-data train.jsonl: {said}\n")
    status, _, err = run(capsys, monkeypatch, "answer", *given)
    assert (status, err.count("\n")) == (2, 1)
    assert "--train-data train.jsonl: nothing is taken from it: list.jsonl gives each question its options" in err


def test_a_folder_that_cannot_be_written_to_is_named_as_it_was_given(monkeypatch, here):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError) as raised:
        check_output_folder(Path("folder"))
    assert str(raised.value) == f"--output folder: no permission to write in {here}/folder"
    with pytest.raises(UserError) as raised:
        check_output_folder(Path("absent/deep"))
    assert str(raised.value) == f"--output absent/deep: no permission to write in {here}"
    check_output_file(Path("/dev/null"))  # whose folder nobody need write to


def test_an_error_of_the_system_may_be_of_a_number(capsys, monkeypatch, here):
    def fail(*_):
        raise OSError(9, "Bad file descriptor", 7)

    monkeypatch.setattr("fastvtp.systems.recipes.recipe_summaries", fail)
    assert run(capsys, monkeypatch, "recipes")[2] == "fastvtp: 7: Bad file descriptor\n"
