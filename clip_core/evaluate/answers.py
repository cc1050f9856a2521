"""What a model answers to every query of a benchmark: the values that all metrics are means of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clip_core.evaluate.benchmark import GROUPS, Benchmark, questions
from clip_core.evaluate.bootstrap import units_of
from clip_core.evaluate.embed import Features
from clip_core.evaluate.retrieval import AT, Relevant, chance_at, map_at_r, map_chance, median_rank_by_chance, retrieve

PARTS = ("", "seen_", "unseen_")  # of the zero-shot pictures; the first is all of them


@dataclass(frozen=True)
class Answers:
    """A metric before its mean is taken: a value for every query, and the mean of a model that knows nothing.

    Of ranks it is the median that is taken.
    """

    values: np.ndarray
    chance: float
    units: np.ndarray  # queries of one number are drawn together: bootstrap.py
    num_tied: int | None = None  # of ranks: queries whose right answer is level with a wrong one, which stands before

    @property
    def are_ranks(self) -> bool:
        return self.num_tied is not None


def answers_of(
    features: Features, benchmark: Benchmark, among: Sequence[str] = GROUPS
) -> dict[str, dict[str, Answers]]:
    """Group -> metric -> answers. A group without queries is left out, as is zero-shot where pictures have no class."""
    groups = {}
    for group in among:
        asked = questions(benchmark, group)
        if len(asked.asking_texts):
            texts, images = features.texts, features.images
            groups[group] = {
                **answers_one_way("text_to_image", texts[asked.asking_texts], images[asked.images], asked.right_images),
                **answers_one_way("image_to_text", images[asked.asking_images], texts[asked.texts], asked.right_texts),
            }
    if len(features.class_names) > 1:
        groups["zero_shot"] = _zero_shot(features, benchmark)
    return groups


def to_json(answers: Mapping[str, Mapping[str, Answers]]) -> dict:
    """The answers whose means count as lists, by `group.metric`."""
    named = {
        f"{group}.{name}": found
        for group, metrics in answers.items()
        for name, found in metrics.items()
        if not found.are_ranks
    }
    return {
        "values": {name: np.round(found.values.astype(float), 6).tolist() for name, found in named.items()},
        "chance": {name: found.chance for name, found in named.items()},
    }


def labelled(features: Features, benchmark: Benchmark) -> tuple[np.ndarray, np.ndarray]:
    """The pictures that have a class, as places in image_ids, and their classes, as places in class_names."""
    place = {name: i for i, name in enumerate(features.class_names)}
    pictures = np.array([i for i, name in enumerate(benchmark.classes) if name in place])
    return pictures, np.array([place[benchmark.classes[i]] for i in pictures])


def answers_one_way(way: str, queries: np.ndarray, candidates: np.ndarray, right: Relevant) -> dict[str, Answers]:
    """Each metric of one way of searching: queries (n, width) among candidates (m, width), all L2-normalised."""
    num_right = [len(places) for places in right]
    found = retrieve(queries, candidates, right, max(num_right))
    units = units_of(right)
    each = {f"{way}_recall@{k}": Answers(found.ranks <= k, chance_at(num_right, len(candidates), k), units) for k in AT}
    values, chances = [each[name].values for name in each], [each[name].chance for name in each]
    precision = Answers(map_at_r(found.is_right, num_right), map_chance(num_right, len(candidates)), units)
    return each | {
        f"{way}_mean_recall": Answers(np.mean(values, axis=0), float(np.mean(chances)), units),
        f"{way}_map@r": precision,
        f"{way}_median_rank": Answers(
            found.ranks, median_rank_by_chance(num_right, len(candidates)), units, int(found.is_tied.sum())
        ),
    }


def _zero_shot(features: Features, benchmark: Benchmark) -> dict[str, Answers]:
    pictures, labels = labelled(features, benchmark)
    found = retrieve(features.images[pictures], features.classes, labels[:, None], 0)
    right, seen = found.ranks == 1, benchmark.is_seen[pictures]
    chosen = dict(zip(PARTS, (np.ones_like(seen), seen, ~seen), strict=True))
    chance = 1 / len(features.class_names)
    return {
        f"{part}top1_accuracy": Answers(right[rows], chance, np.arange(rows.sum()))
        for part, rows in chosen.items()
        if rows.any()
    }
