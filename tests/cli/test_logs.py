"""Log lines beside progress bars: each begins on a line of its own, on a terminal and in a file."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

PROGRAM = """
import logging
from fastvtp.cli.logs import log_to_stderr
log_to_stderr(logging.INFO, "%(levelname)s %(message)s")
from tqdm import tqdm
logging.info("before")
outer = tqdm(total=4, desc="outer", mininterval=0)
inner = tqdm(total=4, desc="inner", position=1, mininterval=0)
with outer, inner:
    for step in range(4):
        outer.update()
        inner.update()
        if step == 2:
            logging.warning("one")
            logging.warning("two")
logging.info("after")
"""
LINES = ["INFO before", "WARNING one", "WARNING two", "INFO after"]


def _on_a_terminal(*command):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            read = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        said += read
    os.close(ours)
    assert process.wait() == 0
    return said.decode()


def _shown(said):
    """The lines of a terminal after what was written to it: of what libraries draw, returns, line feeds, steps up."""
    lines, row, column = [""], 0, 0
    for part in said.replace("\x1b[A", "\x00"):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
        elif part == "\x00":
            row -= 1
        else:
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]


def test_on_a_terminal_lines_and_bars_share_no_line():
    shown = _shown(_on_a_terminal(sys.executable, "-c", PROGRAM))
    assert [line for line in shown if line in LINES] == LINES
    left = [line for line in shown if line and line not in LINES]
    assert sorted(line.split(":")[0] for line in left) == ["inner", "outer"]
    assert not any("WARNING" in line for line in left)


def test_in_a_file_lines_begin_lines(tmp_path):
    with open(tmp_path / "log", "wb") as log:
        subprocess.run([sys.executable, "-c", PROGRAM], stderr=log, check=True)
    said = (tmp_path / "log").read_bytes().decode()  # a bar begins with a return, which ends no line
    assert [line for line in said.split("\n") if line in LINES] == LINES
    assert "WARNING one\nWARNING two\n" in said


@pytest.mark.parametrize("command", [["data", "check", "{}", "--probe", "all"], ["prepare", "{}", "{}.out"]])
def test_commands_name_files_on_lines_of_their_own(tmp_path, command):
    """What a worker says of a file that broke off while a bar is drawn."""
    from tests.data.clips import write_clip, write_lines

    for number in range(3):
        write_clip(tmp_path / f"{number}.mkv", 24)
    whole = (tmp_path / "1.mkv").read_bytes()
    (tmp_path / "1.mkv").write_bytes(whole[: 2 * len(whole) // 3])
    listed = write_lines(tmp_path / "in.jsonl", *({"video": f"{n}.mkv", "caption": "x"} for n in range(3)))
    said = _on_a_terminal(sys.executable, "-m", "fastvtp", *(part.replace("{}", str(listed)) for part in command))
    warnings = [line for line in _shown(said) if "WARNING" in line]
    assert warnings
    assert all(line.startswith("WARNING ") for line in warnings)


CROWD = """
import logging, sys, threading
from fastvtp.cli.logs import log_to_stderr
sys.setswitchinterval(1e-5)
log_to_stderr(logging.INFO, "%(message)s")
from tqdm import tqdm
failed = []
def bars():
    for _ in range(300):
        made = [tqdm(total=3, leave=False) for _ in range(5)]
        for bar in made:
            bar.close()
def lines():
    while any(thread.is_alive() for thread in drawing):
        try:
            logging.info("a line")
        except Exception as error:
            failed.append(repr(error))
drawing = [threading.Thread(target=bars) for _ in range(2)]
logs = threading.Thread(target=lines)
for thread in (*drawing, logs):
    thread.start()
for thread in (*drawing, logs):
    thread.join()
print(*set(failed))
"""


def test_a_line_may_come_while_another_thread_makes_a_bar():
    done = subprocess.run([sys.executable, "-c", CROWD], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
    assert "Logging error" not in done.stderr


def test_a_log_that_nobody_reads_ends_nothing():
    program = (
        PROGRAM.partition("with outer")[0]
        + """
import os
read, write = os.pipe()
os.close(read)
os.dup2(write, 2)
logging.info("nowhere")
print("alive", flush=True)
os._exit(0)
"""
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n")
