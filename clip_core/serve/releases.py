"""The folder `serving/`: the releases that can be served, which of them is, and what happened to them.

    releases/<id>/    proved releases, as links to the files that the pipeline or `clip_core.serve.gallery` made
    current           a link to the one that serves
    history.jsonl     every release added, made public, refused or removed, and by what
    tombstones.txt    deletion requests: a release that holds what they name is neither added nor made public
    live/, running.json, *.lock    of a running `make serve`

None of it is DVC's, which removes what a stage makes before it runs again. `python -m clip_core.serve.releases` lists
them, `... add FOLDER` adds one; `clip_core.serve.remote` fetches one from an object store.
"""

import argparse
import json
import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clip_core.data.tombstones import FILE, Tombstones, is_hit, read_tombstones
from clip_core.errors import UserError, told_to_the_user
from clip_core.files import atomic_write, check_space, link_file, replacing_folder, sync
from clip_core.locks import try_lock
from clip_core.project import RELEASE, project_root, serving_folder
from clip_core.serve.milvus import collections_of, drop
from clip_core.serve.release import MANIFEST, RELEASE_ID, Manifest, read_manifest, verify
from clip_core.serve.triton import Server

if TYPE_CHECKING:
    import pandas as pd


class Event(NamedTuple):
    """A line of the history."""

    time: str  # UTC
    # added, promoted, refused, begun (a rollout of it), public (on a Triton), serves, failed, removed; canary (`why` is
    # its share), aborted (for it did worse), ended (the canary, otherwise)
    event: str
    release: str
    why: str


class Begun(NamedTuple):
    """A canary that is under way."""

    time: str  # UTC
    release: str
    share: float  # of those who ask


class Held(UserError):
    """Another process does what only one may do at a time."""


def add(serving: Path, folder: Path, keep: int | None) -> Manifest:
    """Adds the proved release in `folder`; the first one becomes current. Old ones beyond `keep` newest are removed.

    When it is the newest already nothing is done, but that a damaged copy of it is replaced.
    """
    with _lock(serving / "add.lock", "", waits=True):
        manifest = read_manifest(folder)
        refuse_deleted(serving, folder)
        place = folder_of(serving, manifest.release)
        if not _is_whole(place, manifest):
            verify(folder)
            check_space(serving, [folder])  # where links can not be had, copies are made
            with replacing_folder(place) as aside:
                for name in manifest.files:
                    (aside / name).parent.mkdir(parents=True, exist_ok=True)
                    link_file(folder / name, aside / name)
                shutil.copy2(folder / MANIFEST, aside / MANIFEST)
        if added(serving)[:1] != [manifest.release]:  # new, or made again after others: then it is the newest again
            record(serving, "added", manifest.release, str(folder))
        if current(serving) is None:
            make_current(serving, manifest.release, "the first release")
        if keep is not None:
            with suppress(Held):
                remove(serving, unneeded(serving, keep), f"releases.keep: {keep}")
    return manifest


def folder_of(serving: Path, release: str) -> Path:
    return serving / "releases" / release


def verified(serving: Path, release: str) -> Path:
    """The folder of the release; UserError when it is not there, or not what was proved."""
    folder = folder_of(serving, release)
    if not RELEASE_ID.fullmatch(release) or not (folder / MANIFEST).exists():
        there = ", ".join(added(serving)) or "none"
        raise UserError(f"{serving}: no release {release} here; there are: {there}")
    if (found := verify(folder).release) != release:
        raise UserError(f"{folder}: holds release {found}; remove the folder")
    return folder


def refuse_deleted(serving: Path, folder: Path) -> None:
    """UserError when the release in `folder` holds what a deletion request has named."""
    if (marks := read_tombstones(serving / FILE)) and (number := num_shown(folder, marks)):
        raise UserError(
            f"{folder}: holds {number} pictures or captions that deletion requests name ({serving / FILE}); it can not "
            "serve. Make a release without them: `python -m flows.forget` does, or take them out of your folder"
        )


def num_shown(folder: Path, marks: Tombstones) -> int:
    """How many pictures the galleries of the release show that are named themselves, or by a caption or the source."""
    return sum(len(pairs[is_hit(pairs, marks)].drop_duplicates("image_id")) for pairs in shown(folder))


def shown(folder: Path) -> "Iterator[pd.DataFrame]":
    """The pair table of each gallery of the release."""
    from clip_core.data.store import open_store

    return (open_store(gallery).pairs for gallery in sorted((folder / "galleries").iterdir()))


def added(serving: Path) -> list[str]:
    """The releases that are there, the newest first."""
    order = [event.release for event in reversed(history(serving)) if event.event == "added"]
    return [release for release in dict.fromkeys(order) if (folder_of(serving, release) / MANIFEST).exists()]


def current(serving: Path) -> str | None:
    """The release that serves, or will at the next start; None before there is one."""
    with suppress(FileNotFoundError):
        return (serving / "current").readlink().name
    return None


def have_served(serving: Path) -> list[str]:
    """The releases that have been public and are still there, the last one first; the current one is not among them."""
    order = [event.release for event in reversed(history(serving)) if event.event == "serves"]
    there, now = set(added(serving)), current(serving)
    return [release for release in dict.fromkeys(order) if release in there and release != now]


def refused(serving: Path) -> set[str]:
    """The releases that the promotion has refused, or that did worse as a canary, and were not promoted since."""
    decisions = ("promoted", "refused", "aborted")
    decided = {event.release: event.event for event in history(serving) if event.event in decisions}
    return {release for release, decision in decided.items() if decision != "promoted"}


def canary(serving: Path) -> Begun | None:
    """The release of which a share of the callers is asked, beside the public one; None when none is."""
    kinds = ("canary", "aborted", "ended", "serves")  # who makes a release public ends any canary
    last = next((event for event in reversed(history(serving)) if event.event in kinds), None)
    if last is None or last.event != "canary" or not (folder_of(serving, last.release) / MANIFEST).exists():
        return None
    return Begun(last.time, last.release, float(last.why))


def make_current(serving: Path, release: str, why: str) -> None:
    """From now on `release` is the one that serves, also after a restart."""
    aside = serving / f".current.{os.getpid()}"
    aside.unlink(missing_ok=True)
    aside.symlink_to(Path("releases", release))
    aside.replace(serving / "current")
    sync(serving)
    record(serving, "serves", release, why)


def history(serving: Path) -> list[Event]:
    """All that happened, in order."""
    with suppress(FileNotFoundError):
        lines = (serving / "history.jsonl").read_text(encoding="utf-8").splitlines()
        return [Event(**json.loads(line)) for line in lines]
    return []


def record(serving: Path, event: str, release: str, why: str = "") -> int:
    """Adds a line to the history; gives its number."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with _lock(serving / "history.lock", "", waits=True):
        events = [*history(serving), Event(now, event, release, why)]
        lines = [json.dumps(one._asdict(), ensure_ascii=False) for one in events]
        atomic_write(serving / "history.jsonl", "\n".join(lines) + "\n")
    return len(events)


@contextmanager
def only_gateway(serving: Path) -> Generator[None]:
    """Holds the folder for one gateway; Held when another one serves from it, wherever that was started."""
    with _lock(serving / "gateway.lock", f"{serving.resolve()}: another `make serve` serves from this folder"):
        yield


@contextmanager
def only_pull(serving: Path) -> Generator[None]:
    """Holds the folder for one pull; Held when another one is at it."""
    with _lock(serving / "pull.lock", f"{serving}: another pull is running; wait for it and try again"):
        yield


@contextmanager
def only_rollout(serving: Path) -> Generator[None]:
    """Holds the folder for one change of what serves; Held when another one is at it."""
    with _lock(serving / "rollout.lock", f"{serving}: another rollout is running; wait for it and try again"):
        yield


def write_server(serving: Path, server: Server, url: str) -> None:
    """Writes down where a running gateway and its Triton are, for this user's eyes: it holds the key."""
    state = {"url": url, "address": server.address, "key": server.key}
    state |= {"live": str(server.live.absolute()), "log": str(server.log.absolute())}
    state["shared_memory"] = server.shared_memory
    aside = serving / f".running.{os.getpid()}"
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(state, file)
    aside.replace(serving / "running.json")


def running_server(serving: Path) -> Server | None:
    """The Triton server behind the gateway that serves from this folder; None when none does."""
    with suppress(Held), only_gateway(serving):
        return None
    with suppress(FileNotFoundError):
        state = json.loads((serving / "running.json").read_text(encoding="utf-8"))
        places = Path(state["live"]), Path(state["log"])
        return Server(state["address"], state["key"], *places, state["shared_memory"])
    raise UserError(f"{serving}: `make serve` is starting there; try again when it has named its page")


def announcement(serving: Path, release: str) -> str:
    """What to tell of a release that was added."""
    now = current(serving)
    if now == release:
        return f"release {release} serves (`make serve`)"
    return f"release {release} is proved; `make rollout` makes it public (now: {now})"


def _is_whole(place: Path, manifest: Manifest) -> bool:
    """Whether the release is there with all its files, by their names and sizes; a rollout looks at their bytes."""
    try:
        return read_manifest(place) == manifest and sum(_sizes(place)) == manifest.num_bytes
    except UserError:
        return False


def _sizes(place: Path) -> Iterator[int]:
    return (path.stat().st_size for path in place.rglob("*") if path.is_file() and path != place / MANIFEST)


def unneeded(serving: Path, keep: int) -> list[str]:
    """All but the `keep` newest, the current one, the one before, the canary and the newest that waits for approval."""
    there, refused_ones = added(serving), refused(serving)
    served = {event.release for event in history(serving) if event.event == "serves"}
    decided = {event.release for event in history(serving) if event.event == "promoted"} - refused_ones
    waiting = [release for release in there if release in decided - served]
    tried = [begun.release] if (begun := canary(serving)) else []
    kept = {*there[:keep], current(serving), *have_served(serving)[:1], *waiting[:1], *tried}
    return [release for release in there if release not in kept]


def remove(serving: Path, releases: Sequence[str], why: str) -> None:
    """Removes them; Held while a rollout is at work, which may need one; the current one never goes."""
    with only_rollout(serving):
        gone = collections_of(folder_of(serving, release) for release in releases)
        for release in releases:
            assert release != current(serving)
            record(serving, "removed", release, why)
            shutil.rmtree(folder_of(serving, release))
        drop(gone - collections_of(folder_of(serving, release) for release in added(serving)))


@contextmanager
def _lock(file: Path, message: str, waits: bool = False) -> Generator[None]:
    """Holds the lock file; another holder is waited for, or else Held says the message."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if waits:
            flock(lock, LOCK_EX)
        elif not try_lock(lock):
            raise Held(message)
        yield
    finally:
        os.close(lock)


def main() -> None:
    from clip_core.all_params import load_params
    from clip_core.serve import lineage

    parser = argparse.ArgumentParser(prog="python -m clip_core.serve.releases", description=__doc__)
    parser.add_argument("--serving", type=Path, help="default: the project's")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    adding = commands.add_parser("add", help="add a proved release")
    adding.add_argument("folder", type=Path, metavar="FOLDER", help="as models/release")
    arguments = parser.parse_args()
    with told_to_the_user(OSError):
        serving = serving_folder(arguments.serving)
        if arguments.command == "add":
            project = project_root()
            keep = load_params(project / "params.yaml").releases.keep
            release = add(serving, arguments.folder, keep).release
            if arguments.folder.resolve() == (project / RELEASE).resolve():
                lineage.keep(serving, arguments.folder, project)
            print(announcement(serving, release))
            return
        for release in added(serving):
            manifest = read_manifest(folder_of(serving, release))
            mark = "serves" if release == current(serving) else ""
            print(f"{release}  {manifest.num_bytes / 2**20:8.1f} MiB  {', '.join(manifest.galleries):20}  {mark}")


if __name__ == "__main__":
    main()
