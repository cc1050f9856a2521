"""Ranks hear each other's hearts: a host that is cut off closes no connection, and is waited for in vain."""

import os
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

EVERY = timedelta(seconds=5)
SILENCE = timedelta(minutes=5)  # after which a rank is given up; long computations do not silence a heart
ENDED = "ended"


@contextmanager
def heartbeat() -> Generator[None]:
    """Ends this process, and says which rank is to blame, when one of the group has been silent for `SILENCE`."""
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(done,), name="heartbeat", daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()


def _beat(done: threading.Event) -> None:
    here, num = dist.get_rank(), dist.get_world_size()
    keys = [f"heartbeat of rank {number}" for number in range(num)]
    said, since, beats = [""] * num, [time.monotonic()] * num, 0
    try:
        with _given_up("the host of rank 0"):
            port = int(os.environ["MASTER_PORT"])
            store = dist.TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=SILENCE)
            for key in keys if here == 0 else []:  # rank 0 listens to all of them, the others to its store
                store.set(key, "")
        while True:
            beats += 1
            is_last = done.is_set()
            with _given_up("the host of rank 0"):
                store.set(keys[here], ENDED if is_last else str(beats))
                heard = store.multi_get(keys if here == 0 and not is_last else [keys[here]])
            if is_last:
                return
            for number, word in enumerate(bytes(answer).decode() for answer in heard):
                if word != said[number] or word == ENDED:
                    said[number], since[number] = word, time.monotonic()
                elif time.monotonic() - since[number] > SILENCE.total_seconds():
                    _end(f"rank {number}")
            done.wait(EVERY.total_seconds())
    except dist.DistError:
        return  # the process that kept the hearts has ended, which the group notices by itself


@contextmanager
def _given_up(who: str) -> Generator[None]:
    """Ends this process where the block takes longer than `SILENCE`: the store is then out of reach."""
    alarm = threading.Timer(SILENCE.total_seconds(), _end, [who])
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


def _end(who: str) -> None:
    print(
        f"error: {who} has not been heard of for {SILENCE.total_seconds():g} s: is it stopped, or its host cut off? "
        "This rank ends; called again, the training goes on from its last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)  # the main thread waits inside the group, where no exception reaches it
