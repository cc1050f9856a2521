"""A row of the table: one model measured on one opened benchmark, and what the figures were made of."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial

import numpy as np

from clip_core.code import commit_of, reached_by
from clip_core.config.evaluation import Evaluate
from clip_core.config.section import hash_of
from clip_core.evaluate.benchmarks.described import RELEASED, Benchmark, Classification, Retrieval
from clip_core.evaluate.benchmarks.measured import (
    Measured,
    by_template,
    measured_classes,
    measured_retrieval,
    scores_of,
)
from clip_core.evaluate.benchmarks.opened import Asked, Labelled
from clip_core.evaluate.benchmarks.overlap import Overlap
from clip_core.evaluate.benchmarks.table import paper_of
from clip_core.inference.features import image_features, text_features
from clip_core.inference.predictor import Predictor
from clip_core.inference.prompts import negations, prompted, unit
from clip_core.model.contract import Contract
from clip_core.model.registry import MODELS

ORIGINS = ("imported with the image tower", "Chinese CLIP")  # of the released text tower, in model.json
OF_TEMPLATES = 2000  # pictures at most by which templates are judged


@dataclass(frozen=True)
class Case:
    """An opened benchmark and how it is measured, the same for every model."""

    name: str
    benchmark: Benchmark
    data: Asked | Labelled
    templates: Sequence[str]  # none of a retrieval benchmark
    templates_from: str  # ours, cn_clip
    overlap: Overlap | None  # with the training data that were given
    train_id: str | None  # their manifest's hash, as model.json names it
    params: Evaluate
    seed: int

    @property
    def has_answers(self) -> bool:
        """False where no text names a picture."""
        return not isinstance(self.data, Asked) or len(self.data.asked.pairs) > 0


@dataclass(frozen=True)
class Row:
    """What a model did on a benchmark: for the table, for comparisons, and by template."""

    row: dict
    measured: Measured
    by_template: list[dict]


def row_of(predictor: Predictor, model: str, case: Case) -> Row:
    """Measures the model; features that are kept are read. Raises UserError where a picture can not be decoded."""
    print(f"{model} on {case.name}", flush=True)
    images = image_features(predictor, case.data.shelves)
    templates: list[dict] = []
    if isinstance(case.data, Asked) and isinstance(case.benchmark, Retrieval):
        asked = case.data.asked
        texts = text_features(predictor, asked.texts)
        measured = measured_retrieval(texts, images, asked, case.benchmark.ways, case.params, case.seed)
        sizes = {"pictures": len(images), "texts": len(texts)}
        notes = _truncated(predictor, asked.texts)
    else:
        assert isinstance(case.data, Labelled) and isinstance(case.benchmark, Classification)
        measured, templates = _classified(predictor, images, case, case.data, case.benchmark)
        sizes = {"pictures": len(images), "classes": len(case.data.class_names)}
        notes = _on_names(case.data.class_names)
    return Row(_row(predictor, model, case, measured, sizes, notes), measured, templates)


def _classified(
    predictor: Predictor, images: np.ndarray, case: Case, data: Labelled, benchmark: Classification
) -> tuple[Measured, list[dict]]:
    prompts = prompted(partial(text_features, predictor), data.class_names, case.templates)
    scores = scores_of(images, unit(prompts.mean(axis=1)), benchmark.metric, predictor.logit_scale)
    measured = measured_classes(scores, data.labels, benchmark.metric, case.params, case.seed)
    if len(case.templates) == 1:
        return measured, []
    some = slice(None, None, -(-len(images) // OF_TEMPLATES))  # evenly over all classes
    found = by_template(images[some], data.labels[some], prompts, benchmark.metric, predictor.logit_scale)
    rows = [{"template": template} | row for template, row in zip(case.templates, found, strict=True)]
    return measured, sorted(rows, key=lambda row: -row["gain"])


def _row(
    predictor: Predictor, model: str, case: Case, measured: Measured, sizes: dict[str, int], notes: list[str]
) -> dict:
    contract, released = predictor.contract, _released(predictor.contract)
    return {
        "benchmark": case.name,
        "title": case.benchmark.title,
        "model": model,
        "weights_id": predictor.weights_id,
        "made": _made(contract),
        "data": case.data.data_id,
        "sizes": sizes,
        "templates": f"{case.templates_from}, {len(case.templates)}" if case.templates else "",
        "metrics": measured.metrics,
        "released": released,
        "paper": paper_of(case.benchmark, released),
        "overlap": None if case.overlap is None else asdict(case.overlap),
        "contaminated": list(_contaminations(contract, case)),
        "notes": notes,
        "params": hash_of(case.params, case.seed, list(case.templates)),
        "precision": f"{predictor.runtime} {predictor.precision} on {predictor.device}",
        "versions": reached_by("stages.benchmark").versions,
        "commit": commit_of(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _made(contract: Contract) -> dict[str, str]:
    """Where the weights come from, in a few words."""
    made = contract.made
    found = {"made by": made.stage, "of training data": made.data, "with params": made.params, "from": made.parent}
    return {name: value for name, value in found.items() if value}


def _released(contract: Contract) -> str | None:
    """Which of the paper's models has this architecture, if one has."""
    of = contract.architecture
    for name in RELEASED:
        shape = MODELS[name]
        if (shape.image_tower.name, shape.embed_dim) == (of.image_tower.name, of.embed_dim):
            return name
    return None


def _contaminations(contract: Contract, case: Case) -> list[str]:
    found = []
    if case.benchmark.contaminated and contract.made.text_tower.startswith(ORIGINS):
        found.append(f"contaminated: {case.benchmark.contaminated}")
    if case.overlap and case.overlap.pictures_near and contract.made.data == case.train_id:
        of = case.overlap
        found.append(
            f"contaminated: the training data have {of.pictures_near:,} of its {of.num_pictures:,} pictures "
            f"({of.pictures_exact:,} byte by byte)"
        )
    return found


def _truncated(predictor: Predictor, texts: Sequence[str]) -> list[str]:
    before = predictor.num_truncated
    predictor.tokenize(texts)
    cut = predictor.num_truncated - before
    return [f"{cut:,} texts were cut off at {predictor.contract.context_length} tokens"] if cut else []


def _on_names(names: Sequence[str]) -> list[str]:
    twice = [name for name, number in Counter(names).items() if number > 1]
    notes = [f"classes of one name, whose pictures can not be right: {'、'.join(twice)}"] if twice else []
    if negated := negations(names):
        notes.append(f"class names that negate, which the paper found not to be understood: {'、'.join(negated)}")
    return notes
