"""DVC stage of the ablation: one arm, made of the stages `stage1` and `stage2` with other steps, and its answers."""

import json
from pathlib import Path

from stages.ablation_arms import arms_of, english_steps, num_steps
from stages.command import run


def main(packed: Path, start: Path, arm: str, seed: int, out: Path, params_file: Path = Path("params.yaml")) -> None:
    import shutil

    from clip_core.data.store import open_store
    from clip_core.evaluate.answers import answers_of, to_json
    from clip_core.evaluate.benchmark import read_benchmark
    from clip_core.evaluate.embed import embed
    from clip_core.files import atomic_write
    from clip_core.inference.predictor import load
    from clip_core.params_file import load_params, read_yaml
    from clip_core.recipe import merged
    from stages import stage1, stage2

    params = load_params(params_file)
    chosen, work = arms_of(params)[arm], Path(".work/ablation") / f"{arm}-{seed}"
    if chosen.start == "random":
        start = _forget_english(start, seed, work / "start")
    for stage, schedule in chosen.trains.items():
        overlay = {"schedule": schedule.model_dump(), "evaluate_every": max(num_steps(schedule), 1)}
        tree = merged(read_yaml(params_file), {"seed": seed, stage: overlay})
        atomic_write(work / "params.yaml", json.dumps(tree))
        train = {"stage1": stage1.main, "stage2": stage2.main}[stage]
        print(f"{arm}, seed {seed}: {num_steps(schedule)} steps of {stage}", flush=True)
        train(packed, start, work / stage, curves=work / "curves", params_file=work / "params.yaml")
        start = work / stage
    store = open_store(packed / "test")
    benchmark = read_benchmark(store)
    features = embed(load(start), store, benchmark, params.evaluate.prompt_templates)
    facts = {
        "arm": arm,
        "title": chosen.title,
        "seed": seed,
        "chinese_steps": sum(num_steps(schedule) for schedule in chosen.trains.values()),
        "english_steps": english_steps(params) if chosen.start == "english" else 0,
        "peak_lr": [schedule.peak_lr for schedule in chosen.trains.values()],
    }
    atomic_write(out, json.dumps(facts | to_json(answers_of(features, benchmark))))
    shutil.rmtree(work)


def _forget_english(start: Path, seed: int, out: Path) -> Path:
    """`start` with the image tower as it was before the warm-up."""
    from clip_core.model.clip import make_clip
    from clip_core.model.contract import read_contract
    from clip_core.model.weights import load_weights, save_weights
    from clip_core.train.warm_start import take_image_side

    contract, model = read_contract(start), load_weights(start)
    take_image_side(model, make_clip(contract.architecture, seed))
    made = contract.made.model_copy(update={"stage": "random start"})
    save_weights(model, (start / contract.tokenizer).read_text(encoding="utf-8"), out, made)
    return out


if __name__ == "__main__":
    run(main)
