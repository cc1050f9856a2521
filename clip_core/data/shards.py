"""The map over shards: each is worked on by itself, in any process, and its result kept under the hash of its making.

A stage that was killed goes on where it was, and a new shard is the only one that is worked on.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from logging import WARNING
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from clip_core.code import reached_by
from clip_core.config.engine import Engine
from clip_core.config.section import hash_of
from clip_core.env import set_switches
from clip_core.errors import UserError
from clip_core.files import link_file
from clip_core.guard import end_with_parent
from clip_core.kept import hashes_of, keep, kept, state_of

SPEAKS_EVERY = 3  # seconds
WITHOUT_WORKERS = 120  # seconds that Ray's cluster may be without a machine that works, as while one starts again
ALSO_READ = "also-read"  # a file of a result: `record_files`


@dataclass(frozen=True)
class Task:
    """The work on one shard: `work(*arguments, out)` fills the folder `out`."""

    shard: str
    work: Callable[..., None]  # of a module, so that another process finds it
    arguments: tuple[Any, ...]
    reads: Sequence[Path]  # the files whose bytes decide what comes out
    decides: tuple[object, ...] = field(default=())  # what else does: params, and anything that JSON can hold


def map_shards(stage: str, tasks: Sequence[Task], engine: Engine) -> dict[str, Path]:
    """Shard -> the folder of its result, which must not be changed; what is kept is not worked on again.

    The code that decides is all that the stage reaches. Raises the first error of a shard; what others have made by
    then is kept.
    """
    reached = reached_by(f"stages.{stage}")
    sums = iter(hashes_of([file for task in tasks for file in task.reads]))
    keys = {
        task.shard: hash_of(task.shard, *task.decides, [next(sums) for _ in task.reads], reached.code, reached.versions)
        for task in tasks
    }
    assert len(keys) == len(tasks), "two shards have one name"
    missing = [task for task in tasks if not _is_kept(stage, keys[task.shard])]
    if len(tasks) > 1:
        print(f"{stage}: {len(tasks):,} shards, {len(tasks) - len(missing):,} of them kept from before", flush=True)
    works = [(task.work, task.arguments, stage, keys[task.shard]) for task in missing]
    started = spoke = time.monotonic()
    for done, _ in enumerate(_run(works, engine), start=1):
        if len(tasks) > 1 and (time.monotonic() - spoke > SPEAKS_EVERY or done == len(works)):
            spoke = time.monotonic()
            left = round((spoke - started) / done * (len(works) - done))
            print(f"{stage}: {done:,} of {len(works):,} shards  {left // 60}:{left % 60:02} left", flush=True)
    return {shard: keep(stage, key, _nobody_makes) for shard, key in keys.items()}


def record_files(files: Sequence[Path], out: Path) -> None:
    """Notes in the result that these files, which nobody can list before, decide as well: when one changes, it goes."""
    lines = (f"{_state(file)}\t{file}\n" for file in files)
    (out / ALSO_READ).write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


def publish(results: dict[str, Path], names: Sequence[str], folder: Path) -> None:
    """Links the files `<name>-<shard>.parquet` of a stage's results into its out, those that are there."""
    for shard, result in results.items():
        for name in names:
            if (file := result / f"{name}.parquet").exists():
                link_file(file, folder / f"{name}-{shard}.parquet")


def _is_kept(stage: str, key: str) -> bool:
    folder = kept(stage, key)
    if folder is None or not (folder / ALSO_READ).exists():
        return folder is not None
    lines = (folder / ALSO_READ).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    if all(_state(Path(file)) == state for state, _, file in (line.partition("\t") for line in lines)):
        return True
    shutil.rmtree(folder)
    return False


def _state(file: Path) -> str:
    try:
        return state_of(file)
    except OSError:
        return "missing"


def _nobody_makes(folder: Path) -> None:
    raise AssertionError(f"{folder}: its work has ended without a result")


Work = tuple[Callable[..., None], tuple[Any, ...], str, str]


def _make(work: Callable[..., None], arguments: tuple[Any, ...], stage: str, key: str) -> None:
    keep(stage, key, lambda out: work(*arguments, out))


def _run(works: list[Work], engine: Engine) -> Iterator[None]:
    """Yields as one after another is done, wherever it runs."""
    if engine.maps == "ray":
        yield from _on_ray(works, engine)
    elif len(works) == 1:  # not worth a process
        _make(*works[0])
        yield
    elif works:
        yield from _on_this_machine(works, engine)


def _on_this_machine(works: list[Work], engine: Engine) -> Iterator[None]:
    processes = min(engine.processes or os.cpu_count() or 1, len(works))
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin) as pool:
        futures: list[Future] = [pool.submit(_make, *work) for work in works]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BrokenProcessPool:
            raise UserError(
                "a process that worked on a shard was killed: is there enough memory? Fewer at once take less: "
                "engine.processes in params.yaml. What is finished is kept: run again"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    end_with_parent()
    set_switches()


def _on_ray(works: list[Work], engine: Engine) -> Iterator[None]:
    try:
        import ray
        from ray.exceptions import RayTaskError
    except ModuleNotFoundError:
        raise UserError("engine.maps is ray, which is not installed: uv pip install 'clip-core[ray]'") from None

    cores = None if engine.address else engine.processes or os.cpu_count()
    ray.init(engine.address, num_cpus=cores, include_dashboard=False, logging_level=WARNING, log_to_driver=False)
    try:
        remote: Any = ray.remote(max_retries=3)(_make_in)
        waiting = [remote.remote(str(Path.cwd()), *work) for work in works]
        seen = time.monotonic()
        while waiting:
            done, waiting = ray.wait(waiting, timeout=1)
            if done:
                ray.get(done)
                yield
            if done or ray.cluster_resources().get("CPU"):
                seen = time.monotonic()
            elif time.monotonic() - seen > WITHOUT_WORKERS:
                raise UserError(
                    f"Ray's cluster at {engine.address} has no machine that works: start one with `ray start "
                    f"--address={engine.address}`, or take engine.maps: local. What is finished is kept: run again"
                )
    except RayTaskError as error:
        raise error.cause from None  # as on this machine
    finally:
        ray.shutdown()


def _make_in(project: str, *work: Any) -> None:
    os.chdir(project)
    set_switches()
    _make(*work)
