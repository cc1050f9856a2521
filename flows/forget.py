"""A deletion request: what is named goes wherever it is held, and does not come back.

python -m flows.forget picture ID_OR_SHA256     # or: caption TEXT, source NAME
python -m flows.forget picture ID_OR_SHA256 --yes
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from tyro.conf import Positional

from clip_core.data.sources.fetch import FETCHED
from clip_core.data.tombstones import FILE, REASON, Tombstones, add_tombstones, is_hit, read_tombstones, tombstones_for
from clip_core.errors import UserError, told_to_the_user
from clip_core.files import sha256_file
from clip_core.kept import KEPT
from clip_core.project import RELEASE, SERVING, project_root
from clip_core.serve import lineage, releases
from clip_core.serve.remote import PULLED
from clip_core.serve.rollout import Run, just_run, roll_out
from flows import worktree
from flows.dag import WORKTREES, alone, bring_up_to_date, collect_garbage, stages_upstream_first

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["picture", "caption", "source"]
COLUMNS = {"picture": ("image_id", "image_sha256"), "caption": ("caption",), "source": ("source",)}
SHA256 = re.compile(r"[0-9a-f]{64}")
RAW = Path("data/raw")  # what `ingest` makes
TRAININGS = {"text_start", "init", "stage1", "stage2"}  # they take hours: the next `dvc repro` begins them anew


class Request(NamedTuple):
    """What is to go, and what holds it now."""

    marks: Tombstones
    pictures: frozenset[str]  # sha256 of each that goes
    num_rows: int  # of data/raw
    holding: list[lineage.Holding]  # the releases that were trained on it or show it


def main(kind: Positional[Kind], value: Positional[str], yes: bool = False) -> None:
    """Deletes a picture, a caption or a whole source from data, caches and releases.

    Args:
        kind: what `value` names.
        value: a picture's id or the sha256 of its bytes, a caption as it is written, or the name of a source.
        yes: without it nothing is done but told what would be.
    """
    os.chdir(project_root())
    print(forget(kind, value, yes))


def forget(kind: Kind, value: str, yes: bool, run: Run = just_run) -> str:
    """Does it in the working directory's project, each step by `run`, or with `yes` false only prints what it would do.

    Killed or failed at any step, it is called again and goes on. Raises UserError where nothing holds the value.
    """
    request = looked_for(kind, value)
    print("\n".join(told(request)), flush=True)
    if not yes:
        return "nothing was changed: `--yes` does it"
    for folder in (Path(), SERVING):
        add_tombstones(folder / FILE, request.marks)
    run("empty caches", lambda: empty_caches(request.pictures))
    run("bring data and release up to date", bring_up_to_date_but_trainings)
    release_without(request, run)
    number = run("empty DVC's cache", lambda: collect_garbage(Path(), dry=False, branches=False))
    return f"done; {number} objects went from DVC's cache. Commit {FILE} and dvc.lock; `dvc repro` trains without it"


def looked_for(kind: Kind, value: str) -> Request:
    """What the request names and what holds that; UserError where nothing does."""
    asked = tombstones_for(value, [name for name in COLUMNS[kind] if name != "image_sha256" or SHA256.fullmatch(value)])
    folders = {release: releases.folder_of(SERVING, release) for release in releases.added(SERVING)}
    tables = [table[is_hit(table, asked)] for table in known(folders)]
    pictures = frozenset(sha256 for table in tables for sha256 in table["image_sha256"].dropna())
    same = (mark for sha256 in pictures for mark in tombstones_for(sha256, ["image_sha256"]))
    marks = asked.union(same) if kind == "picture" else asked  # the same picture under another id goes, too
    num_rows = sum(int(is_hit(table, marks).sum()) for table in raw())
    holding = [one for one in lineage.holding(SERVING, marks, folders) if one.num_trained or one.num_found]
    if not (num_rows or holding or marks <= read_tombstones(FILE)):
        raise UserError(
            f"{kind} {value!r}: neither {RAW} nor a release in {SERVING} holds it. Name a picture by its id or the "
            "sha256 of its bytes, a caption to the letter, a source as `python -m flows.lineage RELEASE` does"
        )
    return Request(marks, pictures, num_rows, holding)


def known(folders: dict[str, Path]) -> "Iterator[pd.DataFrame]":
    """The keys of all pictures that the project knows: of its data, and what releases show or were trained on."""
    yield from raw()
    for folder in folders.values():
        yield from releases.shown(folder)
    for one in lineage.known(SERVING):
        if (keys := lineage.keys_of_data(SERVING, one)) is not None:
            yield keys


def raw() -> "Iterator[pd.DataFrame]":
    import pandas as pd

    for file in sorted(RAW.glob("pairs-*.parquet")):
        yield pd.read_parquet(file, columns=["image_id", "image_sha256", "caption", "source"])


def told(request: Request) -> Iterator[str]:
    now = releases.current(SERVING)
    yield f"{RAW}: {request.num_rows} rows are refused from now on, as {REASON!r}"
    for one in request.holding:
        does = "shows it and goes" if one.num_found else "stays: its weights have seen it, the next training is without"
        serves = ", as soon as one without it serves" if one.num_found and one.release == now else ""
        yield f"release {one.release} (trained on {one.num_trained or 0} pairs, shows {one.num_found}): {does}{serves}"
    yield f"finetunes in {WORKTREES} and results in {KEPT} go, and what DVC's cache holds beside the workspace, "
    yield "also the weights of other branches and experiments"
    yield "it stays where this project does not write: in the source itself, in backups, in remotes (`dvc gc --cloud`; "
    yield "of releases `python -m clip_core.serve.remote remove`)"


def empty_caches(pictures: frozenset[str]) -> None:
    """Removes finetunes, all kept results, and what was fetched of these pictures; UserError while a DVC is at work."""
    for folder in list(WORKTREES.glob("*")):
        worktree.remove(folder)
    with alone(Path()):
        for folder in (KEPT, SERVING / PULLED):
            shutil.rmtree(folder, ignore_errors=True)
        for file in FETCHED.rglob("*"):
            if file.is_file() and sha256_file(file) in pictures:
                file.unlink()


def bring_up_to_date_but_trainings() -> None:
    """Data, measurements and release anew with the weights of now; where there are none, the data."""
    names = [stage.name for stage in stages_upstream_first(Path()) if stage.name not in TRAININGS]
    bring_up_to_date(names if RELEASE.exists() else names[: names.index("pack") + 1])


def release_without(request: Request, run: Run) -> None:
    """Adds the release that was just made, has it serve in place of one that shows what is to go, and removes those."""
    if RELEASE.exists():
        release = releases.add(SERVING, RELEASE, keep=None).release
        lineage.keep(SERVING, RELEASE, Path())
    showing = [one.release for one in request.holding if one.num_found]
    if releases.current(SERVING) in showing:
        if not RELEASE.exists():
            raise UserError(f"release {releases.current(SERVING)} serves and shows it; `make run` makes one without")
        print(roll_out(SERVING, release, run), flush=True)
    if releases.running_server(SERVING) is None:
        shutil.rmtree(SERVING / "live", ignore_errors=True)  # of a server that was killed
    releases.remove(SERVING, showing, REASON)


if __name__ == "__main__":
    import tyro

    with told_to_the_user():
        tyro.cli(main, prog="python -m flows.forget")
