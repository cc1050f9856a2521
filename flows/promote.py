"""The promotion as a flow: whether a release is to take the place of the one that serves.

`python -m flows.promote [--release ID]` decides about the newest by default. The decision with all figures lies in
`serving/decisions/<release>.json` and on Prefect's page; `promotion` in params.yaml says what is asked for.
"""

if __name__ == "__main__":  # before Prefect is imported, which reads its settings on import
    from flows.server import ensure_server

    ensure_server("flows.promote")

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import httpx
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from clip_core.all_params import load_params
from clip_core.config.params import Params
from clip_core.config.section import hash_of
from clip_core.data.store import open_store
from clip_core.errors import UserError, told_to_the_user
from clip_core.evaluate.benchmark import read_benchmark
from clip_core.evaluate.embed import embed
from clip_core.evaluate.promotion import Check, quality_checks
from clip_core.files import atomic_write
from clip_core.project import project_root, serving_folder
from clip_core.serve import releases
from clip_core.serve.golden import read_golden
from clip_core.serve.released_model import largest_difference, load_released, median_seconds
from flows import registry

PACKED = Path("data/packed")  # what dvc.yaml packs


class Decision(NamedTuple):
    """What became of a candidate, and why."""

    release: str
    against: str  # what served
    is_promoted: bool
    checks: tuple[Check, ...]
    test: str  # hash of the manifest of the data that both were asked about
    params: str  # hash of what decided
    date: str  # UTC

    @property
    def told(self) -> str:
        verdict = "is promoted" if self.is_promoted else "is refused"
        failed = [f"{check.name}: {check.told}" for check in self.checks if not check.passed]
        return "; ".join([f"release {self.release} {verdict} against {self.against}", *failed])


@flow
def promote(release: str | None = None, serving: Path | None = None) -> bool:
    """Decides whether a release is better than the one that serves; nothing that serves changes.

    Args:
        release: the candidate's id; by default the newest that was added.
        serving: the folder of releases; by default the project's.
    """
    folder, params = serving_folder(serving), load_params(Path("params.yaml"))
    candidate, now = release or next(iter(releases.added(folder)), None), releases.current(folder)
    if candidate is None or now is None:
        raise UserError(f"{folder}: no release yet; `make run` makes one")
    if candidate == now:
        print(f"release {candidate} serves already", flush=True)
        return False
    decision = decide(folder, candidate, now, params)
    atomic_write(folder / "decisions" / f"{candidate}.json", json.dumps(as_json(decision), indent=1) + "\n")
    releases.record(folder, "promoted" if decision.is_promoted else "refused", candidate, decision.told)
    if not decision.is_promoted:
        emit_event(
            "clip.refused", {"prefect.resource.id": f"clip.release.{candidate}"}, payload={"told": decision.told}
        )
    with suppress(httpx.HTTPError):  # a page less, and no reason to fail
        create_markdown_artifact(key="promotion", markdown=page_of(decision))
    print(decision.told, flush=True)
    if decision.is_promoted:
        print(register(folder, candidate), flush=True)
    if decision.is_promoted and params.promotion.approval:
        print(f"`make rollout RELEASE={candidate}` approves of it", flush=True)
    return decision.is_promoted


@task
def decide(serving: Path, candidate: str, now: str, params: Params) -> Decision:
    """Asks both releases the same queries of the test, with the bytes that would serve."""
    store, limits = open_store(PACKED / "test"), params.promotion
    benchmark = read_benchmark(store)
    folders = [releases.verified(serving, release) for release in (candidate, now)]
    predictors = [load_released(folder) for folder in folders]
    golden = read_golden(folders[0] / "golden")
    checks = [parity_check(largest_difference(predictors[0], golden), golden.max_difference)]
    ours, theirs = (embed(predictor, store, benchmark, params.evaluate.prompt_templates) for predictor in predictors)
    checks += quality_checks(ours, theirs, benchmark, limits, params.evaluate, params.seed)
    times = median_seconds(predictors, golden.texts[0], golden.images[0], params.deploy.num_timed)
    checks.append(speed_check(*times, limits.max_slowdown))
    if limits.licences is not None:
        checks.append(licence_check(predictors[0].contract.made.data, limits.licences))
    return Decision(
        release=candidate,
        against=now,
        is_promoted=all(check.passed for check in checks),
        checks=tuple(checks),
        test=hash_of(store.manifest),
        params=hash_of(limits, params.evaluate, params.seed),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@task
def register(serving: Path, release: str) -> str:
    """Makes it a version of the registry; where that can not be, tells why: it is promoted all the same."""
    try:
        return f"release {release} is {registry.TAG}{registry.add(serving, project_root(), release)}"
    except UserError as error:
        return f"no version was registered: {error}; then call `python -m flows.registry --register {release}`"


def parity_check(difference: float, allowed: float) -> Check:
    return Check(
        "parity", difference <= allowed, f"features differ from torch by {difference:.1e}, allowed {allowed:.0e}"
    )


def speed_check(ours: float, theirs: float, allowed: float) -> Check:
    told = f"{1000 * ours:.1f} ms for a text and a picture against {1000 * theirs:.1f}, allowed {allowed:g} times"
    return Check("speed", ours <= allowed * theirs, told)


def licence_check(trained_on: str, allowed: tuple[str, ...]) -> Check:
    """Whether the training data have no other licence than is allowed; of data that are gone nobody knows."""
    store = open_store(PACKED / "train")
    if hash_of(store.manifest) != trained_on:
        told = f"unknown: it was trained on the data {trained_on}, and {PACKED} holds others"
        return Check("licences", False, told)
    others = sorted(set(store.pairs.licence.fillna("unknown")) - set(allowed))
    return Check("licences", not others, f"not allowed: {', '.join(others)}" if others else "all allowed")


def as_json(decision: Decision) -> dict:
    return decision._asdict() | {"checks": [check._asdict() for check in decision.checks]}


def page_of(decision: Decision) -> str:
    """Markdown: the decision, a row for each check."""
    rows = [f"| {check.name} | {'yes' if check.passed else '**no**'} | {check.told} |" for check in decision.checks]
    verdict = "promoted" if decision.is_promoted else "refused"
    title = f"Release {decision.release} is {verdict} (against {decision.against})"
    return "\n".join([f"**{title}**", "", "| check | passed | figures |", "|---|---|---|", *rows])


if __name__ == "__main__":
    import tyro

    with told_to_the_user():
        tyro.cli(promote.fn, prog="python -m flows.promote")
