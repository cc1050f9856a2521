"""Functions called ahead of time in worker processes, by torch's DataLoader: what they give comes in order."""

import multiprocessing
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from clip_core.config.loader import Loader
from clip_core.errors import UserError

SHARED = Path("/dev/shm")  # how tensors come from workers
REMEDY = "Lower `loader.workers` or `loader.prefetch`, or give the machine more of it (of a container: --shm-size)"
# What workers import, once for all of them.
PRELOADED = ["clip_core.data.batches", "lmdb", "timm.data"]
END: Any = object()
Item = TypeVar("Item")
Made = TypeVar("Made")


def num_workers(loader: Loader, is_in_memory: bool) -> int:
    """The number of worker processes: what `loader` says, else one a core where pictures have to be decoded."""
    if loader.workers is not None:
        return loader.workers
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 0 if is_in_memory else max(1, len(os.sched_getaffinity(0)) // ranks_here)


def start_workers_early() -> None:
    """Has the process that workers are forked from import what they need, while this one does something else.

    Forked from this one they would inherit its locks and its CUDA, which its threads hold.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def in_workers(make: Callable[[Item], Made], items: Iterable[Item], workers: int, prefetch: int) -> Generator[Made]:
    """`make` of each item, in order; in `workers` processes with `prefetch` results each ready, or here with 0."""
    if workers == 0:
        yield from map(make, items)
        return
    start_workers_early()
    results = iter(
        DataLoader(
            _Calls(make),
            batch_size=None,
            sampler=items,  # any iterable does
            num_workers=workers,
            prefetch_factor=prefetch,
            collate_fn=_as_it_is,
            worker_init_fn=_prepare_worker,
            multiprocessing_context="forkserver",
        )
    )
    try:
        yield from results
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"{error}. The system ends a process when memory is short ({SHARED} has {_free() / 2**20:,.0f} MiB left). "
            f"{REMEDY}; training goes on where it was"
        ) from None


def ahead(made: Generator[Made]) -> Generator[Made]:
    """What `made` gives, the next one made by a thread meanwhile; closing it closes `made`."""
    with closing(made), ThreadPoolExecutor(1) as thread:
        coming: Future[Any] = thread.submit(next, made, END)
        while (one := coming.result()) is not END:
            coming = thread.submit(next, made, END)
            yield one


class _Calls(Dataset):
    """A function as a data set: `calls[item]`."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __getitem__(self, index: Any) -> Any:
        made = self._make(index)
        needed = sum(value.nbytes for value in made if isinstance(value, torch.Tensor))
        if _free() < 2 * needed:  # or the system ends this process in the midst of writing
            raise UserError(f"{SHARED} has no room for {needed / 2**20:,.1f} MiB of pictures. {REMEDY}")
        return made


def _as_it_is(made: Made) -> Made:
    return made


def _prepare_worker(number: int) -> None:
    threading.Thread(target=_end_with_training, daemon=True).start()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    Image.core.set_blocks_max(8)  # memory of a picture is used again for the next, not given back between
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training's to handle
    if number:
        warnings.simplefilter("ignore")  # told once is enough


def _end_with_training() -> None:
    """However it ends: to torch the process that forks workers is their parent, and it lives as long as one of them."""
    training = multiprocessing.parent_process()
    assert training is not None
    training.join()
    os._exit(1)


def _free() -> int:
    return shutil.disk_usage(SHARED).free if SHARED.exists() else 2**63
