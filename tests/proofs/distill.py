"""What a teacher gives a student of half its widths on the built-in data: recall on test without one and with, by seed.

Short trainings from random starts, all else equal; whatever comes out. Nothing was chosen by these figures: both
losses count once. `PACKED=data/packed` in the environment takes data that are packed already.
"""

import os
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import numpy as np

from clip_core.all_params import load_params
from clip_core.config.intervals import StageInterval
from clip_core.config.model import CustomModel, ImageTower, Options, TextTower
from clip_core.config.params import Params
from clip_core.config.stage2 import Distill
from clip_core.data.captions import texts_of_store
from clip_core.data.store import open_store
from clip_core.evaluate.ablation import over_seeds, rounded
from clip_core.evaluate.answers import answers_of
from clip_core.evaluate.benchmark import read_benchmark
from clip_core.evaluate.embed import embed
from clip_core.image import Preprocessing
from clip_core.inference.predictor import load
from clip_core.model.clip import make_clip
from clip_core.model.contract import Architecture, Made
from clip_core.model.registry import MODELS, Shape, shape_of
from clip_core.model.text_start import text_start
from clip_core.model.weights import save_weights
from clip_core.train.setup import Setup
from stages.training import Paths, train_stage
from tests.conftest import ROOT, new_project, run_in

SEEDS = (2211, 2212, 2213)
TEACHER_STEPS, STUDENT_STEPS = 200, 80  # of 128 pairs
NO_DROPOUT: Options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SIZES: Options = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 256}
HALF = CustomModel(
    name="custom",
    image_size=32,
    context_length=32,
    matryoshka=(),
    image_tower=ImageTower(name="resnet10t", options={"channels": (16, 32, 64, 128), "stem_width": 8}),
    text_tower=TextTower(name="bert", options=SIZES | NO_DROPOUT),
    embed_dim=64,
)
COSINE = Distill(weights="weights", images=True, texts=True, loss="cosine", weight=1.0)
ARMS = {
    "no teacher": None,
    "cosine": COSINE,
    "relation": COSINE.model_copy(update={"loss": "relation"}),
}
METRICS = ("seen", "unseen")  # text_to_image_mean_recall on these concepts


def prove() -> dict:
    """Each arm's recalls with intervals over the seeds, and what it differs by from the one without a teacher."""
    (ROOT / ".work").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".work") as scratch:
        packed = Path(os.environ["PACKED"]).resolve() if "PACKED" in os.environ else made(Path(scratch))
        with chdir(scratch):
            params = load_params(ROOT / "params.yaml")
            teacher = trained(params, MODELS["tiny"], SEEDS[0] - 1, TEACHER_STEPS, packed, Path("teacher"), None)
            runs = {
                arm: [
                    trained(params, shape_of(HALF), seed, STUDENT_STEPS, packed, Path(arm, str(seed)), distill)
                    for seed in SEEDS
                ]
                for arm, distill in ARMS.items()
            }
    return {
        "teacher": {"steps": TEACHER_STEPS, **{name: round(float(value), 4) for name, value in teacher.items()}},
        "student_steps": STUDENT_STEPS,
        "seeds": SEEDS,
        "arms": {arm: compared(mine, runs["no teacher"]) for arm, mine in runs.items()},
    }


def made(scratch: Path) -> Path:
    """The built-in data, packed."""
    project = new_project(scratch / "project")
    run_in(project, "dvc", "repro", "pack")
    return project / "data" / "packed"


def trained(
    params: Params, shape: Shape, seed: int, steps: int, packed: Path, folder: Path, distill: Distill | None
) -> dict[str, float]:
    """The recalls on test of a model that stage 2 makes of a random start, and the seconds it took."""
    store, captions = open_store(packed / "train"), params.stage2.captions
    start = text_start(shape, HALF.context_length, None, texts_of_store(store, captions))
    architecture = Architecture(
        image_tower=shape.image_tower,
        text_tower=start.architecture,
        embed_dim=shape.embed_dim,
        image_size=HALF.image_size,
        context_length=HALF.context_length,
        preprocessing=Preprocessing(),
    )
    made_of = Made(stage="init", params="none", data="none", parent=None, text_tower=start.origin)
    save_weights(make_clip(architecture, seed), start.tokenizer_json, folder / "start", made_of)
    schedule = params.stage2.schedule.model_copy(update={"num_steps": steps, "peak_lr": 0.002})  # as from scratch
    section = params.stage2.model_copy(update={"schedule": schedule, "distill": distill, "path": "teacher"})
    out, begun = folder / "weights", time.monotonic()
    every = StageInterval(log_every=40, save_every=steps, evaluate_every=steps)
    paths = Paths(packed, folder / "start", out, folder / "curves")
    train_stage("stage2", "stages.stage2", Setup.of(section, seed), every, params.loader, paths)
    seconds = time.monotonic() - begun
    test = open_store(packed / "test")
    benchmark = read_benchmark(test)
    answers = answers_of(embed(load(out), test, benchmark, params.evaluate.prompt_templates), benchmark)
    recalls = {group: answers[group]["text_to_image_mean_recall"].values.mean() for group in METRICS}
    print(folder, recalls, flush=True)
    return recalls | {"seconds": seconds}


def compared(runs: list[dict[str, float]], without: list[dict[str, float]]) -> dict:
    found: dict = {"seconds": rounded(np.array([run["seconds"] for run in runs]))}
    for group in METRICS:
        own, other = (np.array([run[group] for run in each]) for each in (runs, without))
        found[group] = over_seeds(own, 0.95) | {"by_seed": rounded(own)}
        if runs is not without:
            found[group]["more"] = over_seeds(own - other, 0.95) | {"by_seed": rounded(own - other)}
    return found
