"""What helpers are sent to do, in a module that is quickly imported."""

import os
import signal
import time


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
