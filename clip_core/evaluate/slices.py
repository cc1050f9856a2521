"""The recalls of text to image on parts of the queries: by caption length, script and category."""

from collections.abc import Iterator

import numpy as np

from clip_core.config.evaluation import Evaluate
from clip_core.data.characters import characters_of
from clip_core.evaluate.answers import AT, answers_of
from clip_core.evaluate.benchmark import Benchmark, questions
from clip_core.evaluate.bootstrap import intervals
from clip_core.evaluate.embed import Features

LENGTHS = (4, 8, 16, 32)  # the longest of each slice, in characters


def slices(features: Features, benchmark: Benchmark, params: Evaluate, seed: int) -> list[dict]:
    """Each part with what divides (`by`), its `name`, `num_queries` and recalls; all search all pictures."""
    answers = answers_of(features, benchmark, ("all",))["all"]
    names = {f"text_to_image_{name}" for name in ("mean_recall", *(f"recall@{k}" for k in AT))}
    found = []
    for by, name, rows in parts_of(benchmark):
        part: dict = {"by": by, "name": name, "num_queries": int(rows.sum())}
        for metric in sorted(names):
            values = answers[metric].values[rows].astype(float)
            units = np.unique(answers[metric].units[rows], return_inverse=True)[1]
            ((low, high),) = intervals(values[:, None], units, params.num_bootstrap, params.confidence, seed)
            part[metric] = {"value": float(values.mean()), "low": float(low), "high": float(high)}
        found.append(part)
    return found


def parts_of(benchmark: Benchmark) -> Iterator[tuple[str, str, np.ndarray]]:
    """Each part: what divides, its name, and which of the asking texts (bool) it holds."""
    asked = questions(benchmark, "all")
    captions = [benchmark.texts[i] for i in asked.asking_texts]
    characters = characters_of(captions)
    divided = {
        "length": [_length(int(length)) for length in characters.length],
        "script": characters.script().tolist(),
        "category": [benchmark.classes[asked.images[right[0]]] for right in asked.right_images],
    }
    for by, kinds in divided.items():
        for name in sorted({kind for kind in kinds if kind is not None}):
            yield by, name.strip(), np.array([kind == name for kind in kinds])


def _length(length: int) -> str:
    least = 1
    for most in LENGTHS:
        if length <= most:
            return f"{least:2}-{most}"  # so that they sort as numbers do
        least = most + 1
    return f"{least:2} or more"
