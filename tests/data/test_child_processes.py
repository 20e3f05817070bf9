"""Processes that run one function: what they get, what they are spared, and that they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastvtp.data.workers.child_processes import end, how_it_ended, start
from tests.data.errands import echo, hang

ROOT = Path(__file__).parents[2]


def test_a_function_gets_a_connection_and_open_files(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        process, connection = start(echo, log.fileno())
        with connection:
            for text in (b"one", b"two"):
                connection.send(text)
                assert connection.recv() == text
        end(process)
    assert (tmp_path / "log").read_bytes() == b"onetwo"
    assert how_it_ended(process) == "SIGKILL"


def test_signals_that_every_process_of_a_job_gets_are_left_to_the_parent(tmp_path):
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with (tmp_path / "log").open("wb") as log:
        process, connection = start(echo, log.fileno())
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
        with connection:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                process.send_signal(number)
                connection.send(b"still there")
                assert connection.recv() == b"still there"
        end(process)


def test_a_process_whose_function_returns_or_raises_has_ended():
    process, connection = start(os.write)  # lacks its arguments
    with connection, pytest.raises(EOFError):
        connection.recv()
    assert how_it_ended(process) == "exit code 1"


SCRIPT = """
import os, sys
with open("runs", "a") as runs:
    runs.write("x")
sys.path.append(sys.argv[1])
from fastvtp.data.workers.helper_process import Helper
from tests.data.errands import sleep
with Helper(30.0) as helper:
    assert helper.call(sleep, 0.0) == 0.0
"""


def test_the_script_of_the_user_is_not_run_again_and_the_folder_it_is_in_hides_nothing(tmp_path):
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "main.py").write_text(SCRIPT)
    for name in ("multiprocessing", "socket", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not what was meant')")
    command = [sys.executable, "script/main.py", str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "runs").read_text() == "x"


def test_a_process_ends_with_its_parent_even_while_it_hangs(tmp_path):
    parent = os.fork()
    if parent == 0:
        try:
            process, connection = start(hang)
            assert connection.recv() == "hangs"
            (tmp_path / "new").write_text(str(process.pid))
            (tmp_path / "new").rename(tmp_path / "pid")
            time.sleep(60)
        finally:
            os._exit(1)
    try:
        patience = time.monotonic() + 30
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < patience
            time.sleep(0.05)
    finally:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
    stat, patience = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat"), time.monotonic() + 10
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < patience
        time.sleep(0.05)
