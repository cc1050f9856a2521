"""Rolls a release out, or back, or tries it: `python -m clip_core.serve.rollout [RELEASE] [--back] [--canary 0.1]`.

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

    By default it is the newest that was not refused: by the promotion, or as a canary.
    """
    return _change(serving, release or newest(serving), "rolled out", run)


def roll_back(serving: Path, run: Run = just_run) -> str:
    """Makes the release that served before the present one serve again."""
    before = releases.have_served(serving)
    if not before:
        raise UserError(f"{serving}: nothing to roll back to: no other release has served")
    return _change(serving, before[0], "rolled back", run)


def begin_canary(serving: Path, release: str | None, share: float) -> str:
    """Loads the proved release beside the public one, for that share of the callers, and probes it."""
    if not 0 < share < 1:
        raise UserError(f"--canary {share}: a share between 0 and 1 is wanted, as 0.1; 0 ends the one under way")
    with releases.only_rollout(serving):
        release = release or newest(serving)
        folder = releases.verified(serving, release)
        releases.refuse_deleted(serving, folder)
        server = releases.running_server(serving)
        if server is None:
            raise UserError(
                f"{serving}: nothing serves there, so there is nobody to try {release}; first: `make serve`"
            )
        with closing(Triton(server)) as triton:
            settle(triton, serving)
            if releases.current(serving) == release:
                raise UserError(f"release {release} is public already; name another one")
            try:
                live.load(triton, folder, release)
                live.probe_release(triton, folder, release)
                releases.record(serving, "canary", release, str(share))
            finally:
                settle(triton, serving)  # a canary before this one goes, and one that did not come so far
    return f"release {release} answers {share:.0%} of the callers; make it public: `make rollout RELEASE={release}`"


def end_canary(serving: Path) -> str:
    """Asks nobody of the canary any more; the gateway has it unloaded."""
    with releases.only_rollout(serving):
        if (begun := releases.canary(serving)) is None:
            raise UserError(f"{serving}: no canary is under way")
        releases.record(serving, "ended", begun.release, "by hand")
    return f"release {begun.release} is no canary any more"


def settle(triton: Triton, serving: Path) -> None:
    """Makes the release that `serving/current` names the only one on this Triton, but for a canary, and the public one.

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
    begun = releases.canary(serving)
    if begun and not live.is_loaded(triton, begun.release):
        releases.record(serving, "ended", begun.release, "Triton was started without it")
        begun = None
    live.unload_others(triton, release, begun and begun.release)


def newest(serving: Path) -> str:
    """The newest release that was not refused; UserError when there is none."""
    added, refused = releases.added(serving), releases.refused(serving)
    if not added:
        raise UserError(f"{serving}: no release yet; `make run` makes one")
    release = next((one for one in added if one not in refused), None)
    if release is None:
        raise UserError(f"{serving}: every release was refused ({serving}/decisions); name the one that is meant")
    return release


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
    parser.add_argument("--canary", type=float, metavar="SHARE", help="only for so many callers; 0 ends that")
    parser.add_argument("--serving", type=Path, help="the folder of releases; default: the project's")
    arguments = parser.parse_args()
    with told_to_the_user():
        release, share, serving = arguments.release, arguments.canary, serving_folder(arguments.serving)
        if (release and (arguments.back or share == 0)) or (arguments.back and share is not None):
            raise UserError("--back and --canary 0 name the release themselves; leave the rest out")
        if share is not None:
            print(begin_canary(serving, release, share) if share else end_canary(serving))
        else:
            print(roll_back(serving) if arguments.back else roll_out(serving, release))


if __name__ == "__main__":
    main()
