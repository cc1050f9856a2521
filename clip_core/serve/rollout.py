"""Rolls a release out, or back: `python -m clip_core.serve.rollout [RELEASE] [--back]`.

On a running `make serve` no request fails or meets half of a release. Without one, what the next start serves changes.
Killed at any step, what `serving/current` names serves after the next start or rollout, or within seconds by the
gateway's own doing: `settle` compares it with what Triton says.
"""

import argparse
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

from clip_core.errors import UserError, told_to_the_user
from clip_core.project import serving_folder
from clip_core.serve import live, releases
from clip_core.serve.triton import Triton

T = TypeVar("T")
Run = Callable[[str, Callable[[], T]], T]  # runs a step, which has a name


def just_run(_name: str, step: Callable[[], T]) -> T:
    return step()


def roll_out(serving: Path, release: str | None, run: Run = just_run) -> str:
    """Makes the proved release the one that serves, or leaves all as it was and raises.

    By default it is the newest that the promotion has not refused.
    """
    added, refused = releases.added(serving), releases.refused(serving)
    if not added:
        raise UserError(f"{serving}: no release yet; `make run` makes one")
    release = release or next((one for one in added if one not in refused), None)
    if release is None:
        raise UserError(f"{serving}: every release was refused ({serving}/decisions); name the one to make public")
    return _change(serving, release, "rolled out", run)


def roll_back(serving: Path, run: Run = just_run) -> str:
    """Makes the release that served before the present one serve again."""
    before = releases.have_served(serving)
    if not before:
        raise UserError(f"{serving}: nothing to roll back to: no other release has served")
    return _change(serving, before[0], "rolled back", run)


def settle(triton: Triton, serving: Path) -> None:
    """Makes the release that `serving/current` names the only one on this Triton, and the public one.

    Does nothing where that is so; puts right what a rollout that was killed left, and fills an empty server.
    """
    release = releases.current(serving)
    assert release is not None
    last = next((event for event in reversed(releases.history(serving)) if event.event == "serves"), None)
    if last is None or last.release != release:
        releases.record(serving, "serves", release, "rolled out by one that was killed")
    if not live.is_loaded(triton, release):
        live.load(triton, releases.verified(serving, release), release)
    if live.public_release(triton) != release:
        live.probe_release(triton, releases.folder_of(serving, release), release)
        live.publish(triton, release, releases.record(serving, "public", release, "what is current"))
    live.unload_others(triton, release)


def _change(serving: Path, release: str, how: str, run: Run) -> str:
    with releases.only_rollout(serving):
        folder = run("verify", lambda: releases.verified(serving, release))
        releases.refuse_deleted(serving, folder)
        server = releases.running_server(serving)
        if server is None and releases.current(serving) == release:
            return f"release {release} is current already; `make serve` serves it"
        if server is None:
            run("make current", lambda: releases.make_current(serving, release, f"{how}; nothing was running"))
            return f"release {release} serves from the next `make serve` on"
        with closing(Triton(server)) as triton:
            run("settle", lambda: settle(triton, serving))  # what a killed rollout left
            if releases.current(serving) == release:
                return f"release {release} serves already"
            number = run("begin", lambda: releases.record(serving, "begun", release, how))
            try:
                run("load", lambda: live.load(triton, folder, release))
                run("probe", lambda: live.probe_release(triton, folder, release))
                run("publish", lambda: live.publish(triton, release, number))
                differences = run("probe public", lambda: live.probe_public(triton, folder, release))
                run("make current", lambda: releases.make_current(serving, release, how))
            except BaseException as error:  # whatever it was, also a cancelled run: what is current serves on
                with suppress(UserError):  # on a full disk, too, things go back
                    releases.record(serving, "failed", release, str(error))
                run("go back", lambda: settle(triton, serving))
                raise
            run("unload", lambda: settle(triton, serving))
    told = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    return f"release {release} serves; its largest differences from torch: {told}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m clip_core.serve.rollout", description=__doc__)
    parser.add_argument("release", nargs="?", metavar="RELEASE", help="default: the newest that was not refused")
    parser.add_argument("--back", action="store_true", help="to the release that served before")
    parser.add_argument("--serving", type=Path, help="the folder of releases; default: the project's")
    arguments = parser.parse_args()
    with told_to_the_user():
        if arguments.back and arguments.release:
            raise UserError("--back names the release itself; leave one of the two out")
        serving = serving_folder(arguments.serving)
        print(roll_back(serving) if arguments.back else roll_out(serving, arguments.release))


if __name__ == "__main__":
    main()
