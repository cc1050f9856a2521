"""What the challenges score: MUGE's ten pictures for each query, ELEVATER's shares of classes for each picture."""

import math
from functools import partial
from pathlib import Path

from safetensors import safe_open

from clip_core.evaluate.benchmarks.opened import Asked
from clip_core.evaluate.benchmarks.rows import Case
from clip_core.evaluate.submissions import about_model, write_elevater, write_muge
from clip_core.inference.features import image_features, text_features
from clip_core.inference.nearest import top_k
from clip_core.inference.predictor import Predictor
from clip_core.inference.prompts import prompted, unit
from clip_core.model.contract import WEIGHTS_FILE

VISUAL = ("image_tower.", "image_projection.")
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of batch normalisation: no parameters
BEST = 10  # pictures


def submit(predictor: Predictor, model: Path, case: Case, folder: Path) -> Path:
    """Writes the model's submission for the benchmark, which needs no answers; returns the file."""
    file = folder / f"{case.name}-{predictor.weights_id}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    images = image_features(predictor, case.data.shelves)
    if isinstance(case.data, Asked):
        file, asked = file.with_suffix(".jsonl"), case.data.asked
        places, _ = top_k(images, text_features(predictor, asked.texts), BEST)
        write_muge(file, asked.text_ids, asked.image_ids, places)
        return file
    classes = unit(prompted(partial(text_features, predictor), case.data.class_names, case.templates).mean(axis=1))
    about = about_model(str(model), case.benchmark.folder or case.name, *num_parameters(model))
    write_elevater(file, about, predictor.logit_scale * (images @ classes.T), case.data.index)
    return file


def num_parameters(model: Path) -> tuple[int, int]:
    """Of all, and of the image side, in a weights folder."""
    with safe_open(model / WEIGHTS_FILE, "np") as file:
        names = [name for name in sorted(file.keys()) if not name.endswith(BUFFERS)]
        sizes = {name: math.prod(file.get_slice(name).get_shape()) for name in names}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if name.startswith(VISUAL))
