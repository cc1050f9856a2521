"""Starts a training on each device of this machine, through torch's elastic launcher, and says who ended it."""

import os
import signal
import sys
import uuid

import torch

from clip_core.config.train import Train
from clip_core.errors import EXIT_CODE, UserError

# The launcher passes them on to all ranks, which end, at the first three with a checkpoint; after 30 s it kills them.
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGQUIT")


class RankDied(RuntimeError):
    """One of the processes of a training has ended, and so all have been stopped."""


def num_processes(train: Train) -> int:
    """How many processes train here: as `train.devices` says, one a GPU where it leaves that open."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if train.devices == "auto":
        return max(num_gpus, 1)
    if num_gpus and train.devices > num_gpus:
        raise UserError(f"train.devices is {train.devices}, but torch finds {num_gpus} GPUs here: lower it, or `auto`")
    return train.devices


def launched(train: Train, module: str) -> bool:
    """Runs this process's command (`python -m module ...`) once for each device, and waits until all have ended.

    Gives False, and does nothing, where one process is enough or a launcher has started this one.
    """
    num = num_processes(train)
    if num == 1 or "RANK" in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num)))
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(SIGNALS)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    print(f"training on {num} devices", flush=True)
    try:
        elastic_launch(config, sys.executable)("-m", module, *sys.argv[1:])
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode == EXIT_CODE:
            raise UserError(f"rank {number} refused; its message stands above") from None
        how = f"with exit code {failure.exitcode}"
        if failure.exitcode < 0:
            how = f"by {signal.Signals(-failure.exitcode).name}"
        raise RankDied(
            f"rank {number} (process {failure.pid}) ended {how}, and so all others were stopped; what it said stands "
            "above. Called again, the training goes on from its last checkpoint"
        ) from None
    return True
