"""DVC stage of the ablation: one arm, made of the stages `stage1` and `stage2` with other steps, and its answers."""

import json
from pathlib import Path
from typing import Literal

from clip_core.config.intervals import Intervals
from clip_core.config.loader import Loader
from stages.ablation_arms import Params, arms_of, num_steps
from stages.command import run


def main(
    params: Params,
    intervals: Intervals,
    loader: Loader,
    packed: Path,
    start: Path,
    arm: str,
    seed: int,
    out: Path,
) -> None:
    import shutil

    from clip_core.data.store import open_store
    from clip_core.evaluate.answers import answers_of, to_json
    from clip_core.evaluate.benchmark import read_benchmark
    from clip_core.evaluate.embed import embed
    from clip_core.files import atomic_write
    from clip_core.inference.predictor import load
    from clip_core.train.setup import Setup
    from stages.training import Paths, train_stage

    chosen, work = arms_of(params)[arm], Path(".work/ablation") / f"{arm}-{seed}"
    if chosen.forgets:
        start = forget(chosen.forgets, start, seed, work / "start")
    for stage, schedule in chosen.trains.items():
        steps = num_steps(schedule)
        section = getattr(params, stage).model_copy(update={"schedule": schedule})
        setup = Setup.of(section, seed)
        interval = getattr(intervals, stage).model_copy(update={"evaluate_every": max(steps, 1)})
        print(f"{arm}, seed {seed}: {steps} steps of {stage}", flush=True)
        paths = Paths(packed, start, work / stage, work / "curves")
        train_stage(stage, "stages.ablation_arm", setup, interval, loader, paths)
        start = work / stage
    store = open_store(packed / "test")
    benchmark = read_benchmark(store)
    features = embed(load(start), store, benchmark, params.prompt_templates)
    facts = {
        "arm": arm,
        "title": chosen.title,
        "seed": seed,
        "chinese_steps": sum(num_steps(schedule) for schedule in chosen.trains.values()),
        "english_steps": num_steps(params.warm_start) if chosen.forgets != "image" else 0,
        "peak_lr": [schedule.peak_lr for schedule in chosen.trains.values()],
    }
    atomic_write(out, json.dumps(facts | to_json(answers_of(features, benchmark))))
    shutil.rmtree(work)


def forget(side: Literal["image", "text"], start: Path, seed: int, out: Path) -> Path:
    """`start` with one side as it was before it learnt anything; the tokenizer stays."""
    from clip_core.model.clip import make_clip
    from clip_core.model.contract import read_contract
    from clip_core.model.weights import load_weights, save_weights
    from clip_core.train.warm_start import take_image_side

    contract, learnt = read_contract(start), load_weights(start)
    new = make_clip(contract.architecture, seed)
    model, other = (learnt, new) if side == "image" else (new, learnt)
    take_image_side(model, other)
    made = contract.made.model_copy(update={"stage": "random start"})
    save_weights(model, (start / contract.tokenizer).read_text(encoding="utf-8"), out, made)
    return out


if __name__ == "__main__":
    run(main)
