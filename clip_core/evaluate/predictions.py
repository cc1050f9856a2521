"""Features and predictions as files, and what is scored of them, whoever made them.

    python -m clip_core.evaluate.predictions features WEIGHTS SPLIT OUT   features of a packed split (data/packed/test)
    python -m clip_core.evaluate.predictions search IMAGES TEXTS OUT      MUGE's submission, of two files of features
    python -m clip_core.evaluate.predictions score FILE ... --truth FILE  recalls, of submissions in MUGE's format
    python -m clip_core.evaluate.predictions score FILE ... --truth FILE --metric accuracy     of ELEVATER's format

The truth is the reference's `valid_texts.jsonl` (or its `.tr.jsonl`, which asks for texts); of classification a line
for each picture with its class, as a number from 0, or its classes. Several files are compared with the first one.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from clip_core.env import set_switches
from clip_core.errors import UserError, told_to_the_user
from clip_core.evaluate.bootstrap import compared, intervals, resampled_means, units_of
from clip_core.evaluate.classification import METRICS, interval_of, resampled, score
from clip_core.evaluate.feature_files import SUFFIXES, read_features, write_features
from clip_core.evaluate.records import ASKED, read_answers
from clip_core.evaluate.retrieval import AT
from clip_core.evaluate.submissions import read_elevater, write_muge
from clip_core.files import atomic_write
from clip_core.inference.nearest import top_k

NUM_BOOTSTRAP, CONFIDENCE, SEED = 2000, 0.95, 2211
NAMED = 5  # ids in a message


def score_retrieval(files: list[Path], truth: Path) -> dict[str, dict]:
    """Of each file the recalls with their intervals; of the others their difference from the first one, too."""
    try:
        asks, right = read_answers(truth)
    except UserError as error:
        raise UserError(f"{error} (a truth of classes is scored with --metric)") from None
    with_truth = {query: answers for query, answers in right.items() if answers}
    if not with_truth:
        raise UserError(f"{truth}: no {asks} in it has an answer: there is nothing to score")
    hits = {str(file): hits_of(file, asks, right) for file in files}
    numbers: dict[str, int] = {}
    places = [[numbers.setdefault(answer, len(numbers)) for answer in answers] for answers in with_truth.values()]
    units = units_of(places)
    sizes = {"num_queries": len(with_truth), "num_without_truth": len(right) - len(with_truth)}
    means = {file: resampled_means(found, units, NUM_BOOTSTRAP, SEED) for file, found in hits.items()}
    first, told = next(iter(hits)), {}
    for file, found in hits.items():
        told[file], bounds = dict(sizes), intervals(found, units, NUM_BOOTSTRAP, CONFIDENCE, SEED)
        for i, name in enumerate(_names(asks)):
            told[file][name] = _entry(found[:, i].mean(), bounds[i])
            if file != first:
                value, its_means = (of[file][:, i] - of[first][:, i] for of in (hits, means))
                told[file][name]["minus_first"] = compared(float(value.mean()), its_means, CONFIDENCE)
    return told


def score_classification(files: list[Path], truth: Path, metric: str) -> dict[str, dict]:
    """Of each file the metric with its interval; of the others its difference from the first one, too."""
    told: dict[str, dict] = {}
    values: dict[str, tuple[float, np.ndarray]] = {}
    for file in files:
        scores = read_elevater(file)
        labels = _read_labels(truth, metric, scores.shape[1])
        if len(labels) != len(scores):
            raise UserError(f"{file}: {len(scores)} pictures, and {truth} has {len(labels)} lines: one each is wanted")
        value, means = score(metric, scores, labels), resampled(metric, scores, labels, NUM_BOOTSTRAP, SEED)
        entry = _entry(value, interval_of(metric, value, means, labels, CONFIDENCE))
        for its_value, its_means in list(values.values())[:1]:
            entry["minus_first"] = compared(value - its_value, means - its_means, CONFIDENCE)
        values[str(file)] = value, means
        told[str(file)] = {"num_queries": len(scores), metric: entry}
    return told


def hits_of(file: Path, asks: str, right: dict[str, list[str]]) -> np.ndarray:
    """Of each query that has a truth whether the file's answers hit it at 1, 5 and 10, and the mean of these.

    UserError where the file does not answer each query of the truth, and no other.
    """
    found_asks, found = read_answers(file)
    if found_asks != asks:
        raise UserError(f"{file}: has {found_asks} and {ASKED[found_asks]}, but the truth asks for {ASKED[asks]}")
    for wrong, what in ((found.keys() - right.keys(), "not in the truth"), (right.keys() - found.keys(), "missing")):
        if wrong:
            named = ", ".join(sorted(wrong)[:NAMED]) + (" ..." if len(wrong) > NAMED else "")
            raise UserError(f"{file}: {len(wrong)} of the {asks}s are {what}: {named}; each is wanted once")
    candidates = {answer for answers in found.values() for answer in answers}
    wanted = min(max(AT), len(candidates))
    for query, answers in found.items():
        if not wanted <= len(answers) <= max(AT):
            raise UserError(f"{file}: {asks} {query} has {len(answers)} {ASKED[asks]}, and {wanted} are wanted")
    ranks = []
    for query, answers in right.items():
        if not answers:
            continue
        places = [found[query].index(answer) for answer in answers if answer in found[query]]
        ranks.append(1 + min(places, default=len(candidates)))
    hits = np.array(ranks)[:, None] <= np.array(AT)
    return np.concatenate([hits, hits.mean(axis=1, keepdims=True)], axis=1)


def _names(asks: str) -> list[str]:
    way = {"text_id": "text_to_image", "image_id": "image_to_text"}[asks]
    return [*(f"{way}_recall@{k}" for k in AT), f"{way}_mean_recall"]


def _entry(value: float, bounds: np.ndarray) -> dict[str, Any]:
    return {"value": float(value), "low": float(bounds[0]), "high": float(bounds[1])}


def _read_labels(file: Path, metric: str, num_classes: int) -> np.ndarray:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: can not be read as text: {error}") from None
    sets = np.zeros((len(lines), num_classes), dtype=bool)
    for number, line in enumerate(lines, 1):
        classes = line.split()
        if not all(name.isdecimal() and int(name) < num_classes for name in classes):
            raise UserError(f"{file}, line {number}: {line!r:.40}: classes from 0 to {num_classes - 1} are wanted")
        if metric != "map_11_points" and len(classes) != 1:
            raise UserError(f"{file}, line {number}: {len(classes)} classes, and {metric} takes one a picture")
        sets[number - 1, [int(name) for name in classes]] = True
    return sets if metric == "map_11_points" else sets.argmax(axis=1)


def extract(weights: Path, split: Path, out: Path, suffix: str) -> None:
    """Writes `images` and `texts` of the packed split into the folder `out`."""
    from clip_core.data.store import open_store
    from clip_core.evaluate.benchmark import read_benchmark
    from clip_core.inference.predictor import encode_pictures, load

    store = open_store(split)
    benchmark, predictor = read_benchmark(store), load(weights)
    images, texts = encode_pictures(predictor, store), predictor.encode_texts(benchmark.texts)
    write_features(out / f"images{suffix}", benchmark.image_ids, images, predictor.weights_id, "image_id")
    write_features(out / f"texts{suffix}", benchmark.text_ids, texts, predictor.weights_id, "text_id")
    print(f"wrote {out}/images{suffix}\nwrote {out}/texts{suffix}")


def search(images: Path, texts: Path, out: Path, k: int) -> None:
    """Writes the `k` pictures that are nearest to each text."""
    candidates = read_features(images)
    queries = read_features(texts, candidates.weights)
    if candidates.features.shape[1] != queries.features.shape[1]:
        widths = [found.features.shape[1] for found in (queries, candidates)]
        raise UserError(
            f"{texts}: features of {widths[0]} numbers, and {images} has {widths[1]}: they are of two models"
        )
    places, _ = top_k(candidates.features, queries.features, k)
    write_muge(out, queries.ids, candidates.ids, places)
    print(f"wrote {out}")


def main() -> None:
    """Runs the command; a mistake of the user's becomes a message and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m clip_core.evaluate.predictions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("features", help="of a packed split")
    command.add_argument("weights", type=Path, help="a weights folder")
    command.add_argument("split", type=Path, help="as data/packed/test")
    command.add_argument("out", type=Path, help="the folder for the files images and texts")
    suffixes = [suffix[1:] for suffix in SUFFIXES]
    command.add_argument("--format", choices=suffixes, default="npy", help="of both files (default: %(default)s)")
    command = commands.add_parser("search", help="the pictures nearest to each text")
    for name in ("images", "texts"):
        command.add_argument(name, type=Path, help=f"features of {name}, as `features` writes them")
    command.add_argument("out", type=Path, help="the file for the ids of the nearest pictures, a line a text")
    command.add_argument("--top-k", type=int, default=10, help="pictures a text; `score` takes ten (default: ten)")
    command = commands.add_parser("score", help="predictions against the truth")
    command.add_argument("files", type=Path, nargs="+", help="each is compared with the first")
    command.add_argument("--truth", type=Path, required=True, help="the answers, or a line a picture with its classes")
    command.add_argument("--metric", choices=METRICS, help="of classification; without it recalls are scored")
    command.add_argument("--out", type=Path, help="a file for the figures, which are printed, too")
    arguments = parser.parse_args()
    set_switches()
    with told_to_the_user(OSError):
        if arguments.command == "features":
            extract(arguments.weights, arguments.split, arguments.out, f".{arguments.format}")
        elif arguments.command == "search":
            search(arguments.images, arguments.texts, arguments.out, arguments.top_k)
        else:
            files, truth = arguments.files, arguments.truth
            told = (
                score_classification(files, truth, arguments.metric)
                if arguments.metric
                else score_retrieval(files, truth)
            )
            text = json.dumps(told, indent=1, ensure_ascii=False)
            print(text)
            if arguments.out:
                atomic_write(arguments.out, text + "\n")


if __name__ == "__main__":
    main()
