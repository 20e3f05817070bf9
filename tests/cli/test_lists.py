"""Options of lists at the command line."""

import pytest
from typer.testing import CliRunner

from fastvtp.cli.main import app
from fastvtp.cli.options import ListOptions
from fastvtp.data.formats.lists import ListColumns, VideoList
from fastvtp.errors import UserError
from tests.data.miniatures import MINIATURES


def test_options_make_the_list():
    options = ListOptions("vatex", "val", "/videos", "keep", ["video=file", "caption=title"])
    expected = VideoList("a.json", "vatex", "val", "/videos", "keep", ListColumns(video="file", caption="title"))
    assert options.of("a.json") == expected
    for wrong, complaint in (
        (ListOptions(list_format="vatx"), "no list format 'vatx'; did you mean 'vatex'"),
        (ListOptions(missing="no"), "missing must be one of drop, keep, refuse"),
        (ListOptions(column=["words=x"]), "no column 'words'"),
    ):
        with pytest.raises(UserError, match=complaint):
            wrong.of("a.json")


def test_a_command_reads_a_published_list(tmp_path):
    path = MINIATURES["msrvtt"][0].write(tmp_path)
    for split, said in (("train", "2 captions"), ("7k", "4 captions")):
        words = tmp_path / "words.txt"
        words.write_text("ball\nbox\n")
        given = ["--split", split, "--videos", str(tmp_path), "--words", str(words), "--output", f"{tmp_path}/out.txt"]
        result = CliRunner().invoke(app, ["entities", str(path), *given])
        assert result.exit_code == 0, result.output
        assert f" of {said} in " in result.output
