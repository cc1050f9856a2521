"""`make benchmark` as a flow, with a form on Prefect's page and the table as an artifact there."""

from pathlib import Path

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed

from clip_core.errors import UserError
from stages.benchmark import OUT, main


@flow(name="evaluate-model", log_prints=True)
def evaluate_model(names: list[str], models: list[Path], data: Path | None = None, train: Path | None = None) -> State:
    """Measures models on benchmarks and adds a row for each to reports/benchmarks.

    Args:
        names: of the benchmarks, as docs/evaluation.md lists them, or files of your own.
        models: weights folders.
        data: the folder that holds the benchmarks' folders, or is the one.
        train: the packed training data (data/packed) in which the benchmarks' pictures and texts are looked for.
    """
    try:
        main(tuple(names), tuple(models), data, train)
    except UserError as error:
        return Failed(name="Refused", message=str(error))
    create_markdown_artifact((OUT / "table.md").read_text(encoding="utf-8"), key="benchmarks")
    return Completed(message=f"{', '.join(names)}: {OUT / 'table.md'}")
