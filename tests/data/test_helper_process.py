"""Work that is done in a process of its own, which may hang or end."""

import logging
import sys
import threading
import time

import pytest

from fastvtp.data.workers.helper_process import Helper, LostOnFileError, end_idle_helpers, lent_helper
from fastvtp.errors import UserError
from tests.data.errands import die, die_once, fill_disk, sleep, warn


def test_helpers_are_ended_and_started_again(tmp_path):
    with Helper(30.0) as helper:
        assert helper.call(sleep, 0.0) == 0.0
        assert helper.call(die_once, str(tmp_path / "marker")) == "alive"
        with pytest.raises(LostOnFileError, match=r"ended the process that worked on it \(SIGSEGV\)"):
            helper.call(die)
        with pytest.raises(UserError, match=r"TypeError: "):
            helper.call(sleep, "x")
        with pytest.raises(OSError, match=r"No space left") as caught:
            helper.call(fill_disk)
        assert not isinstance(caught.value, UserError)
        assert helper.call(sleep, 0.0) == 0.0
    with Helper(0.3) as helper, pytest.raises(LostOnFileError, match=r"took longer than 0\.3 s"):
        helper.call(sleep, 5.0)


def test_what_a_helper_has_to_say_is_in_the_log_of_its_parent(caplog, capfd):
    with caplog.at_level(logging.INFO), Helper(30.0) as helper:
        helper.call(warn, "50 % of it")
    assert [record.getMessage() for record in caplog.records] == ["says 50 % of it"]
    assert capfd.readouterr().err == ""
    with caplog.at_level(logging.ERROR), Helper(30.0) as helper:
        helper.call(warn, "more")
    assert len(caplog.records) == 1


def test_what_several_helpers_say_is_said_once(caplog):
    """As of a file that one surveys and another writes; of the next run it is said anew."""
    with lent_helper(30.0) as first, lent_helper(30.0) as second:
        for helper in (first, second, first):
            helper.call(warn, "it is cut")
    end_idle_helpers()
    with lent_helper(30.0) as helper:
        helper.call(warn, "it is cut")
    end_idle_helpers()
    assert [record.getMessage() for record in caplog.records] == ["says it is cut"] * 2


def test_a_helper_is_stopped_by_another_thread(tmp_path):
    with Helper(60.0) as helper:
        assert helper.call(sleep, 0.0) == 0.0
        threading.Timer(0.3, helper.stop).start()
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(LostOnFileError):
                helper.call(sleep, 50.0)
        assert time.monotonic() - began < 10


def test_the_import_of_what_is_called_does_not_count_as_time_at_the_file(tmp_path, monkeypatch):
    (tmp_path / "slowly_imported.py").write_text("import time\ntime.sleep(0.6)\ndef done(): return 'done'\n")
    monkeypatch.syspath_prepend(tmp_path)
    from slowly_imported import done  # pyright: ignore[reportMissingImports]

    try:
        with Helper(0.4) as helper:
            assert helper.call(done) == "done"
    finally:
        del sys.modules["slowly_imported"]
