"""What processes are sent to do, in a module that they import."""

import logging
import os
import signal
import time

from fastvtp.data.file_survey import probe_file


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def die_once(marker):
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def die():
    os.kill(os.getpid(), signal.SIGSEGV)


def fill_disk():
    raise OSError(28, "No space left on device")


def warn(text):
    logging.getLogger("fastvtp.errands").warning("says %s", text)
    logging.getLogger("fastvtp.errands").debug("whispers")


def echo(connection, descriptor):
    """Send back what comes, and write it to a file that is open."""
    while True:
        text = connection.recv()
        os.write(descriptor, text)
        connection.send(text)


def hang(connection):
    """Say that it begins, and listen to nothing from then on."""
    connection.send("hangs")
    time.sleep(60)


def probe_or_fail(location, spans):
    """As `probe_file`, except where the name of the file says what happens."""
    name = os.path.basename(location)
    if name.startswith("hangs"):
        time.sleep(60)
    if name.startswith("dies"):
        die()
    return probe_file(location, spans)
