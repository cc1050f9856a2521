"""From a served release back to what it was made of, and from a picture, a caption or a source to the releases.

python -m flows.lineage RELEASE
python -m flows.lineage --holds ID, SHA256, CAPTION OR SOURCE
"""

from collections.abc import Iterator
from pathlib import Path

from tyro.conf import Positional

from clip_core.data.tombstones import Tombstones, tombstones_for
from clip_core.errors import UserError, told_to_the_user
from clip_core.project import serving_folder
from clip_core.serve import lineage, releases


def main(release: Positional[str | None] = None, holds: str | None = None, serving: Path | None = None) -> None:
    """Prints one or the other."""
    folder = serving_folder(serving)
    if (release is None) == (holds is None):
        raise UserError(
            "name a release, or with --holds a picture, a caption or a source; the releases are: "
            f"{', '.join(releases.added(folder)) or 'none'}"
        )
    print("\n".join(way_of(folder, release) if release else holders_of(folder, tombstones_for(holds or ""))))


def way_of(serving: Path, release: str) -> Iterator[str]:
    """The lines from the release to the files that people made."""
    facts = lineage.of(serving, release)
    events = [f"{event.event} {event.time}" for event in releases.history(serving) if event.release == release]
    yield f"release {release}: {', '.join(events) or 'not in the history'}"
    differed = ", from which files differed" * facts["commit"].endswith("+")
    if before := facts.get("changed_from"):
        yield f"it is release {before} with other pictures"
    yield f"made {facts['date']} with commit {facts['commit'].rstrip('+')}{differed}"
    made = facts["made"]
    yield f"weights {facts['weights']}, by {made['stage']} with params {made['params']}, from {made['parent']}"
    yield f"training data {made['data']}; the text tower started from: {made['text_tower']}"
    for source, licences in (facts["licences"] or {}).items():
        told = ", ".join(f"{number:,} pairs {licence}" for licence, number in licences.items())
        yield f"  {source}: {told}"
    if facts["licences"] is None:
        yield "  not those that lay in data/packed when it was added: nothing is known of their sources"
    yield "stages, with what each has read and made:"
    for name, stage in facts["stages"].items():
        for kind, sign in (("deps", "<"), ("outs", ">")):
            yield from (f"  {name:16} {sign} {path}  {digest}" for path, digest in stage[kind].items())


def holders_of(serving: Path, wanted: Tombstones) -> Iterator[str]:
    """A line for each release."""
    folders = {release: releases.folder_of(serving, release) for release in releases.added(serving)}
    found = list(lineage.holding(serving, wanted, folders))
    if not found:
        raise UserError(f"{serving}: no release was added yet")
    now = releases.current(serving)
    for one in found:
        trained = "its training data are unknown" if one.num_trained is None else f"trained on {one.num_trained} pairs"
        state = "serves" if one.release == now else "there" if one.release in folders else "removed"
        yield f"{one.release}  {state:7}  {trained}, shows {one.num_found} pictures"
    if not any(one.num_trained or one.num_found for one in found):
        sources = {source for one in lineage.known(serving) for source in lineage.of(serving, one)["licences"] or {}}
        yield "nothing known holds it: is it written as in the data, every character of it? Sources are"
        yield f"  {', '.join(sorted(sources)) or 'unknown'}"


if __name__ == "__main__":
    import tyro

    with told_to_the_user():
        tyro.cli(main, prog="python -m flows.lineage")
