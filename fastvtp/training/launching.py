"""The line of torchrun that starts a run on several processes, and what can be told before anything is started."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastvtp.data.workers.child_processes import cores
from fastvtp.errors import ConfigError
from fastvtp.evaluation.report import REPORT_NAME
from fastvtp.training.config import TrainConfig
from fastvtp.training.division import check_strategy, micro_batches_each
from fastvtp.training.resuming import check_resumable

_ADDRESS = re.compile(r"([^\s:\[\]]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")
_STANDALONE, _TORCHRUN = "--standalone", "torch.distributed.run"
# torch 2.13 keeps one store for all restarts, in which a group of gloo finds the addresses of the one before it and
# waits for them; other versions take no notice
_FRESH_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
# torchrun passes the signals that it knows on, and kills what has not ended after so many seconds: before torch 2.13
# always 30, from then on as many as it is told
_SHUTDOWN, _SHUTDOWN_SECONDS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", 600
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")


@dataclass(frozen=True)
class Nodes:
    """How many machines take part, from `least` to `most`; the same number twice where it is fixed."""

    least: int = 1
    most: int = 1

    @classmethod
    def read(cls, text: str) -> "Nodes":
        """Read "4", or "2:4" for a run that goes on with fewer machines. Raises ConfigError for anything else."""
        found = re.fullmatch(r"(\d+)(?::(\d+))?", text)
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most:
            raise ConfigError(f"--nodes expects a number of machines such as 4, or a range such as 2:4, got {text!r}")
        return cls(least, most)

    def __str__(self) -> str:
        return f"{self.least}" if self.least == self.most else f"{self.least}:{self.most}"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What torchrun is to start, and how.

    Attributes:
        arguments: of the command `fastvtp`.
        processes: on each machine, one a GPU where there are GPUs.
        nodes: the machines.
        rendezvous: HOST or HOST:PORT where several machines meet, one of them; None on one machine.
        run_id: by which the machines of one run know each other.
        max_restarts: how often all processes are started again after one of them has failed.
        threads: of each process on the CPU, as OMP_NUM_THREADS.
    """

    arguments: Sequence[str]
    processes: int
    nodes: Nodes = field(default_factory=Nodes)
    rendezvous: str | None = None
    run_id: str = "fastvtp"
    max_restarts: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ConfigError(f"--gpus must be at least 1, got {self.processes}")
        if self.max_restarts < 0:
            raise ConfigError(f"--max-restarts must not be negative, got {self.max_restarts}")
        if self.nodes.most > 1 and self.rendezvous is None:
            raise ConfigError(
                f"{self.nodes} machines need --rendezvous HOST:PORT, where they meet: one of them, such as "
                '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29400 under Slurm'
            )
        if self.rendezvous is not None and not _ADDRESS.fullmatch(self.rendezvous):
            raise ConfigError(f"--rendezvous expects HOST or HOST:PORT, got {self.rendezvous!r}")

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the processes need, beside those that torchrun sets."""
        fresh = {_FRESH_STORE: "1"} if self.max_restarts else {}
        return {"OMP_NUM_THREADS": str(self.threads), _SHUTDOWN: str(_SHUTDOWN_SECONDS), **fresh}

    @property
    def options(self) -> list[str]:
        """The arguments of torchrun, the module and its own arguments behind them."""
        if self.rendezvous is None:
            meeting = [_STANDALONE]
        else:
            meeting = ["--nnodes", f"{self.nodes}", "--rdzv-backend", "c10d"]
            meeting += ["--rdzv-endpoint", self.rendezvous, "--rdzv-id", self.run_id]
        restarts = ["--max-restarts", f"{self.max_restarts}"] if self.max_restarts else []
        options = ["--nproc-per-node", f"{self.processes}", *restarts, "--signals-to-handle", ",".join(_SIGNALS)]
        return [*meeting, *options, "-m", "fastvtp", *self.arguments]

    def line(self) -> str:
        """Return the line for a shell: "torchrun" where that is this Python's, else this Python with torch's module."""
        beside, found = Path(sys.executable).parent / "torchrun", shutil.which("torchrun")
        own = found is not None and beside.exists() and os.path.samefile(found, beside)
        program = ["torchrun"] if own else [sys.executable, "-m", _TORCHRUN]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join([*program, *self.options])])

    def run(self) -> int:
        """Be torchrun, in this process; return the exit status: 0, that of the first process that failed, or 128 and
        the number of a signal, as shells count. A signal that torchrun receives is passed on to the processes, which
        have `_SHUTDOWN_SECONDS` to save themselves."""
        from torch.distributed.elastic.multiprocessing import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import main

        os.environ.update(self.environment)
        try:
            main(self.options)
        except ChildFailedError as failed:
            status = failed.get_first_failure()[1].exitcode
            return status if status >= 0 else 128 - status
        except SignalException as received:
            return 128 + received.sigval
        return 0


def stopped_by(config: TrainConfig, since: float) -> str | None:
    """Return the signal by which a run of this configuration was ended in good order, with a checkpoint to go on from,
    after the time `since` (seconds of `time.time`); None where it was not."""
    path = Path(config.output_dir) / REPORT_NAME
    try:
        if path.stat().st_mtime < since:
            return None
        return json.loads(path.read_text()).get("stopped_by")
    except (OSError, ValueError):
        return None


def threads_of(processes: int, environment: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """Return how many threads each of the processes of a machine has on its CPU, and why so."""
    given = environment.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given), "as in this environment"
    count = cores()
    return max(count // processes, 1), f"{count} cores of this machine for {processes} processes"


def run_id_of(output_dir: str) -> str:
    """Return a name by which the machines of a run know each other, the same wherever it is made."""
    return re.sub(r"[^\w.-]+", "_", output_dir.strip("/")) or "fastvtp"


def check_run(config: TrainConfig, worlds: Sequence[int], *, resume: bool = False) -> None:
    """Raise ConfigError for a run that would be refused once it is started on any of these numbers of processes: one
    that cannot share a step's micro-batches, whose strategy does not go with them, or whose output_dir is taken.

    resume: as in `train`.
    """
    for processes in worlds:
        micro_batches_each(config.batch_size, config.micro_batch, processes)
        check_strategy(config.parallel, config.optimizer.algorithm, processes)
    check_resumable(config, resume=resume)
