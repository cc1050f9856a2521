"""What people ask of the release that serves, against what it was trained on: `python -m flows.watch`, and each day.

    serving/watch/<release>.html, .json    every window of queries, and what was found
    serving/watch/<release>.npz            what windows are compared with

A release's queries are compared with the captions of its training data. Where people ask otherwise from the start, that
is told once, and this first window is what later ones are compared with: else the alarm would never end.
"""

if __name__ == "__main__":  # before Prefect is imported, which reads its settings on import
    from flows.server import ensure_server

    ensure_server("flows.watch")

import json
from pathlib import Path

import numpy as np
from prefect import flow
from prefect.events import emit_event

from clip_core.all_params import load_params
from clip_core.config.section import hash_of
from clip_core.config.watch import Watch
from clip_core.data.store import open_store
from clip_core.errors import UserError, told_to_the_user
from clip_core.evaluate.drift_page import drift_page
from clip_core.evaluate.query_drift import judge
from clip_core.files import atomic_write, replacing_file
from clip_core.inference.nearest import top_k
from clip_core.project import serving_folder
from clip_core.serve import releases, samples
from clip_core.serve.index import read_index
from clip_core.serve.pictures import INDEXES
from clip_core.serve.released_model import load_released

PACKED = Path("data/packed/train")  # what dvc.yaml packs
FOLDER = "watch"  # in serving/

Queries = dict[str, np.ndarray]


@flow
def watch(serving: Path | None = None) -> str:
    """Judges the queries that came since the last time, once they are enough; says so, and tells Prefect of a drift.

    Args:
        serving: the folder of releases; by default the project's.
    """
    folder, params = serving_folder(serving), load_params(Path("params.yaml"))
    release = releases.current(folder)
    if release is None:
        raise UserError(f"{folder}: no release yet; `make run` makes one")
    outcome, has_drifted = look(folder, release, params.watch, params.seed)
    if has_drifted:
        emit_event("clip.drifted", {"prefect.resource.id": f"clip.release.{release}"}, payload={"told": outcome})
    print(outcome, flush=True)
    return outcome


def look(serving: Path, release: str, params: Watch, seed: int) -> tuple[str, bool]:
    """What is to be said of the queries that came since the last time, and whether it is a drift."""
    tidy(serving, params)
    if params.keep == "nothing":
        return "nothing is kept of what is asked (watch.keep in params.yaml)", False
    file = serving / FOLDER / f"{release}.json"
    seen: dict = {"release": release, "windows": []}
    if file.exists():
        seen = json.loads(file.read_text(encoding="utf-8"))
    windows, baseline = seen["windows"], file.with_suffix(".npz")
    if "baseline" not in seen or not baseline.exists():
        seen["baseline"] = keep_training(serving, release, params.window, seed, baseline)
    times, asked = samples.read(serving, release, windows[-1]["last"] if windows else "")
    if len(times) < params.window:
        write(seen, file)
        return f"release {release}: {len(times)} of {params.window} queries; it waits for more", False
    some = np.sort(np.random.default_rng(seed).permutation(len(times))[: params.window])
    now = {name: values[some] for name, values in asked.items()}
    found: dict = {"p_value": None, "has_drifted": False, "checks": []}
    if seen["baseline"] != "nothing":
        with np.load(baseline) as before:
            verdict = judge(dict(before), now, params.false_alarms, seed)
        found = verdict._asdict() | {"checks": [check._asdict() for check in verdict.checks]}
    windows.append({"first": times[0], "last": times[-1], "asked": len(times), "against": seen["baseline"], **found})
    if seen["baseline"] == "nothing" or (len(windows) == 1 and found["has_drifted"]):
        keep_queries(now, baseline)
        seen["baseline"] = "queries"
    write(seen, file)
    return told(release, windows[-1]), found["has_drifted"]


def keep_training(serving: Path, release: str, window: int, seed: int, file: Path) -> str:
    """Keeps queries made of the captions that the release was trained on; "nothing" where there are none."""
    folder = releases.folder_of(serving, release)
    predictor = load_released(folder)
    if not PACKED.exists() or hash_of((store := open_store(PACKED)).manifest) != predictor.contract.made.data:
        return "nothing"
    captions = store.pairs.caption[store.pairs.language == "zh"].dropna()
    if captions.empty:
        return "nothing"
    texts = captions.sample(min(2 * window, len(captions)), random_state=seed).tolist()
    features, tokenizer = predictor.encode_texts(texts), samples.tokenizer_of(folder)
    gallery = min((folder / INDEXES).iterdir())
    _, scores = top_k(read_index(gallery).features, features, 1)
    facts = [samples.facts_of(text, tokenizer) for text in texts]
    keep_queries(samples.columns(*zip(*facts, strict=True), scores[:, 0].tolist(), features), file)
    return "training"


def keep_queries(queries: Queries, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(file) as aside, aside.open("wb") as archive:
        np.savez_compressed(archive, allow_pickle=False, **queries)


def tidy(serving: Path, params: Watch) -> None:
    """Removes what may not be kept: queries that are too old, and what came of those to releases that are gone."""
    samples.tidy(serving, params)
    kept = releases.added(serving) if params.keep != "nothing" else []
    for file in (serving / FOLDER).glob("*.*"):
        if file.stem not in kept:
            file.unlink()


def told(release: str, window: dict) -> str:
    """What was found, in a line."""
    if window["p_value"] is None:
        return f"release {release}: its training data are not here, so later queries are compared with these"
    least = min(check["p_value"] for check in window["checks"])
    far = [check["name"] for check in window["checks"] if check["p_value"] == least]
    against = {"training": "the captions of its training", "queries": "its first queries"}[window["against"]]
    verdict = f"another kind than {against}, by {', '.join(far)}" if window["has_drifted"] else f"as {against}"
    return f"release {release}: what is asked is {verdict} (p = {window['p_value']:.4f})"


def write(seen: dict, file: Path) -> None:
    atomic_write(file, json.dumps(seen, indent=1) + "\n")
    atomic_write(file.with_suffix(".html"), drift_page(seen))


if __name__ == "__main__":
    import tyro

    with told_to_the_user():
        tyro.cli(watch.fn, prog="python -m flows.watch")
