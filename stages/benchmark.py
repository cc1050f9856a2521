"""A command beside the stages: any models on any benchmarks, whole, by one protocol, into one table.

    make benchmark NAME="muge flickr30k_cn" DATA=FOLDER MODEL="FOLDER FOLDER" [TRAIN=data/packed] [TEMPLATES=cn_clip]

All data are read and checked before a model is. Pictures are ingested as the stage `ingest` does it, encoded once for
each model, and kept under `.work/kept`: a command that was killed goes on, and another model is all that is measured.
"""

import json
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from clip_core.config.engine import Engine
from clip_core.config.evaluation import Evaluate
from clip_core.config.section import Section, Seed
from clip_core.env import set_switches
from clip_core.errors import UserError, told_to_the_user
from clip_core.params_file import looked_up, read_yaml, validated

if TYPE_CHECKING:
    from clip_core.data.store import Store
    from clip_core.evaluate.benchmarks.described import Benchmark
    from clip_core.evaluate.benchmarks.rows import Case, Row

OUT = Path("reports/benchmarks")


class Params(Section):
    seed: Seed
    engine: Engine
    evaluate: Evaluate
    distance: Annotated[int, Field(alias="curate.near_duplicate_distance")]


def main(
    names: tuple[str, ...],
    models: tuple[Path, ...],
    data: Path | None = None,
    train: Path | None = None,
    templates: Literal["ours", "cn_clip"] = "ours",
    submit: bool = False,
    out: Path = OUT,
    params_file: Path = Path("params.yaml"),
) -> None:
    """Adds a row for each model on each benchmark to `out`/table.json and table.md.

    `data` holds the benchmarks' folders, or is the one; `train` is the packed training data (data/packed) in which the
    benchmarks' pictures and texts are looked for. `submit` writes `out`/submissions/, what MUGE and ELEVATER score;
    a benchmark without answers has nothing else.
    """
    from clip_core.data.store import open_store
    from clip_core.evaluate.benchmarks.described import described
    from clip_core.evaluate.benchmarks.rows import row_of
    from clip_core.evaluate.benchmarks.submitted import submit as submitted
    from clip_core.evaluate.benchmarks.table import add_rows, page_of
    from clip_core.files import atomic_write
    from clip_core.inference.predictor import load

    if not names or not models:
        raise UserError("name the benchmarks and the weights folders: --names NAME ... --models FOLDER ...")
    params = _params(params_file)
    store = None if train is None else open_store(train / "train")
    wanted = {name: benchmark for one in names for name, benchmark in described(one).items()}
    cases = [_case(name, benchmark, data, store, templates, params) for name, benchmark in wanted.items()]
    if unknown := [case.name for case in cases if not (case.has_answers or submit)]:
        raise UserError(
            f"{', '.join(unknown)}: no text names a picture: without answers nothing can be measured. SUBMIT=1 "
            "(--submit) writes what the challenge scores"
        )
    measured = {}
    for model in dict.fromkeys(models):
        predictor = load(model)
        for case in cases:
            if submit:
                print(f"wrote {submitted(predictor, model, case, out / 'submissions')}", flush=True)
            if not case.has_answers:
                continue
            found = measured[model, case.name] = row_of(predictor, str(model), case)
            add_rows(out, [found.row], [])
            if found.by_template:
                file = out / "templates" / f"{case.name}-{predictor.weights_id}.json"
                atomic_write(file, json.dumps(found.by_template, indent=1, ensure_ascii=False) + "\n")
    table = add_rows(out, [], _comparisons(measured, params))
    mine = {found.row["weights_id"] for found in measured.values()}
    shown = [row for row in table["rows"] if row["benchmark"] in wanted and row["weights_id"] in mine]
    differ = [row for row in table["comparisons"] if row["benchmark"] in wanted and row["weights_id"] in mine]
    print(page_of({"rows": shown, "comparisons": differ}))
    print(f"all rows: {out}/table.md, table.json")


def _params(file: Path) -> Params:
    tree = read_yaml(file)
    keys = [field.alias or name for name, field in Params.model_fields.items()]
    return validated(Params, {key: looked_up(tree, key, file) for key in keys}, file)


def _case(
    name: str, benchmark: "Benchmark", data: Path | None, store: "Store | None", templates: str, params: Params
) -> "Case":
    """The benchmark opened, checked, and looked for in the training data."""
    from clip_core.config.section import hash_of
    from clip_core.evaluate.benchmarks.described import Retrieval
    from clip_core.evaluate.benchmarks.opened import Asked, open_classification, open_retrieval
    from clip_core.evaluate.benchmarks.overlap import overlap_with
    from clip_core.evaluate.benchmarks.rows import Case
    from clip_core.inference.prompts import reference_templates, templates_of

    if isinstance(benchmark, Retrieval):
        found, prompts = open_retrieval(name, benchmark, data, params.engine), ()
    else:
        found = open_classification(name, benchmark, data, params.engine)
        is_ours = templates == "ours"
        prompts = templates_of(benchmark.templates) if is_ours else reference_templates(benchmark.reference_templates)
    overlap = train_id = None
    if store is not None:
        texts = found.asked.texts if isinstance(found, Asked) else []
        overlap, train_id = overlap_with(store, found.shelves, texts, params.distance), hash_of(store.manifest)
    return Case(name, benchmark, found, prompts, templates, overlap, train_id, params.evaluate, params.seed)


def _comparisons(measured: "dict[tuple[Path, str], Row]", params: Params) -> list[dict]:
    """Every model against each before it, on each benchmark."""
    from clip_core.evaluate.benchmarks.measured import differences

    found = []
    for (before, name), (model, other) in combinations(measured, 2):
        if name == other:
            one, two = measured[model, name], measured[before, name]
            about = {"benchmark": name, "model": str(model), "weights_id": one.row["weights_id"], "minus": str(before)}
            about |= {"minus_weights_id": two.row["weights_id"], "data": one.row["data"]}
            about |= {"templates": one.row["templates"]}
            found += [about | row for row in differences(one.measured, two.measured, params.evaluate.confidence)]
    return found


if __name__ == "__main__":
    import tyro

    set_switches()
    with told_to_the_user():
        tyro.cli(main, prog="python -m stages.benchmark")
