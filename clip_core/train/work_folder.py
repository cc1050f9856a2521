"""Where interrupted trainings lie: a folder for each, named by what decides its bits, locked while it is at work.

`python -m clip_core.train.work_folder` lists them, removes the one it is told to, or has the code of now adopt it.
"""

import argparse
import math
import os
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from clip_core.config.section import Section
from clip_core.errors import UserError, told_to_the_user
from clip_core.files import atomic_write
from clip_core.locks import is_at, try_lock
from clip_core.project import project_root
from clip_core.train.fingerprint import Decisive, as_now, changed_code, differences_from_now
from clip_core.train.state import checkpoints_in, progress_in, step_of

ROOT = Path(".work")
COMMAND = "python -m clip_core.train.work_folder"
ABOUT = "about.json"


class Adoption(Section):
    """That a training goes on with other code than it began with."""

    fingerprint: str  # of the training from then on
    step: int  # the last one of the code before
    changed: tuple[str, ...]  # modules, and packages with both versions

    def __str__(self) -> str:
        return f"after step {self.step} by other code: {', '.join(self.changed)}"


class About(Section):
    """What a folder says of its training."""

    decisive: Decisive
    adoptions: tuple[Adoption, ...]


@contextmanager
def work_folder(decisive: Decisive, root: Path = ROOT) -> Generator[Path]:
    """The folder for a training's state, ours alone while the block runs, removed when it ends well.

    Folders of other trainings stay as they are: those that other code or packages left interrupted are named.
    """
    folder = root / decisive.stage / decisive.fingerprint
    with _locked(folder):
        about = About(decisive=decisive, adoptions=adoptions_in(folder))
        atomic_write(folder / ABOUT, about.model_dump_json(indent=1))
        if not checkpoints_in(folder):
            _name_those_of_other_code(folder, decisive)
        yield folder
        # moved first: one that waits makes the lock anew, and a folder that fills can not be removed
        shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.done")))


def adoptions_in(folder: Path) -> tuple[Adoption, ...]:
    """How other code came to the training in `folder`; empty when it is of one code."""
    about = _about(folder)
    if about is None or not about.adoptions or about.adoptions[-1].fingerprint != folder.name:
        return ()  # the last case: killed between saying so and doing it
    return about.adoptions


def adopt(folder: Path) -> Path:
    """Gives the training to the code and packages of now, by renaming its folder; the weights will say so."""
    about, checkpoints = _about(folder), checkpoints_in(folder)
    if about is None or not checkpoints:
        raise UserError(f"{folder}: no interrupted training with a checkpoint; `{COMMAND}` lists those that are")
    now = as_now(about.decisive)
    target = folder.with_name(now.fingerprint)
    if target == folder:
        raise UserError(f"{folder}: is of this code already: `dvc repro` goes on with it")
    with _locked(folder, wait=False), _locked(target, wait=False):
        if checkpoints_in(target):
            raise UserError(
                f"{target}: the code of now has a checkpoint of its own; to give that up: {COMMAND} remove {target}"
            )
        changed = changed_code(about.decisive, now)
        adoption = Adoption(fingerprint=target.name, step=step_of(checkpoints[-1]), changed=tuple(changed))
        after = about.model_copy(update={"decisive": now, "adoptions": (*adoptions_in(folder), adoption)})
        atomic_write(folder / ABOUT, after.model_dump_json(indent=1))
        shutil.rmtree(target)
        folder.rename(target)
    return target


def remove(folder: Path) -> None:
    """Removes an interrupted training; raises UserError when there is none, or when it is at work."""
    is_training = (folder / ABOUT).exists() or any(folder.glob("checkpoint*.safetensors"))  # an old one
    if not (folder / "lock").exists() or not (is_training or _is_locked(folder)):  # one that has just begun
        raise UserError(f"{folder}: no interrupted training; `{COMMAND}` lists those that are")
    with _locked(folder, wait=False):
        shutil.rmtree(folder)


def interrupted(root: Path = ROOT) -> Iterator[Path]:
    """The folders of trainings that have not ended, by stage."""
    return (lock.parent for lock in sorted(root.glob("*/*/lock")))


def described(folder: Path, params_file: Path) -> str:
    """A training's line in the list, and what of it is no longer as it was."""
    at_work = "  at work" if _is_locked(folder) else ""
    about, checkpoints = _about(folder), checkpoints_in(folder)
    if about is None and at_work:
        return f"{folder}  just begun{at_work}"
    if about is None:
        return f"{folder}\n  of an older version, which cannot go on: {COMMAND} remove {folder}"
    progress = f"step {progress_in(checkpoints[-1])}" if checkpoints else "no checkpoint"
    hours = (time.time() - (checkpoints or [folder / ABOUT])[-1].stat().st_mtime) / 3600
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    changed = differences_from_now(about.decisive, params_file)
    lines = [f"{folder}  {progress}  {hours:.1f} h old  {num_bytes / 2**20:,.1f} MiB{at_work}"]
    lines += [f"  differs from now: {what}" for what in changed] or ["  nothing differs from now: `dvc repro` goes on"]
    return "\n".join(lines)


def _about(folder: Path) -> About | None:
    try:
        return About.model_validate_json((folder / ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError:  # of an older version
        return None


def _name_those_of_other_code(folder: Path, now: Decisive) -> None:
    """Prints the interrupted trainings that would go on here if the code or the packages were still theirs."""
    for other in interrupted(folder.parents[1]):
        about, checkpoints = _about(other), checkpoints_in(other)
        if other.parent != folder.parent or other == folder or about is None or not checkpoints:
            continue
        then = about.decisive.model_copy(update={"code": now.code, "versions": now.versions})
        if then.fingerprint == folder.name and not _is_locked(other):
            print(
                f"{now.stage}: starting afresh, since code or packages are others than those of the interrupted "
                f"training {other} (step {progress_in(checkpoints[-1])}), which stays. Changed: "
                f"{', '.join(changed_code(about.decisive, now))}. To go on with it all the same, stop this and call\n"
                f"  {COMMAND} adopt {other}",
                flush=True,
            )


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Generator[None]:
    """Holds the folder's lock; waits for its holder to end, or raises UserError that names it."""
    told = -math.inf
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = (folder / "lock").open("a+", encoding="utf-8")
        except FileNotFoundError:  # removed meanwhile by a training that has ended
            continue
        with lock as file:
            if try_lock(file.fileno()):
                if is_at(folder / "lock", file.fileno()):
                    file.truncate(0)
                    file.write(str(os.getpid()))
                    file.flush()
                    yield
                    return
                continue  # the holder finished and removed the folder: take the new one
            file.seek(0)
            holder = file.read() or "another"  # about to be written
        if not wait:
            raise UserError(f"{folder}: process {holder} is training this: end it first (kill {holder})")
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"process {holder} is training this: waiting for it (kill {holder} ends it)", flush=True)
        time.sleep(0.5)


def _is_locked(folder: Path) -> bool:
    try:
        with (folder / "lock").open("a+", encoding="utf-8") as file:
            return not try_lock(file.fileno())
    except FileNotFoundError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Lists interrupted trainings; removes or adopts one.")
    parser.add_argument("what", choices=["list", "remove", "adopt"], nargs="?", default="list")
    parser.add_argument("folder", type=Path, nargs="?", help="of remove and adopt, as the list names it")
    parser.add_argument("--params-file", type=Path, default=Path("params.yaml"))
    arguments = parser.parse_args()
    if (arguments.what == "list") != (arguments.folder is None):
        parser.error("`list` takes no folder, `remove` and `adopt` take one")
    with told_to_the_user():
        os.chdir(project_root())  # a training's inputs, and its folder in the list, are named from there
        if arguments.what == "list":
            lines = [described(folder, arguments.params_file) for folder in interrupted()]
            print("\n".join(lines) or "no interrupted training")
        elif arguments.what == "remove":
            remove(arguments.folder)
            print(f"removed {arguments.folder}")
        else:
            print(f"adopted as {adopt(arguments.folder)}: `dvc repro` goes on with it, and the weights will say so")


if __name__ == "__main__":
    main()
