"""A stage called in this process, as its command would be, with the params of any file."""

import importlib
import inspect
from contextlib import chdir, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.command import sections_of

OF_DATA = ("ingest", "validate", "curate", "pack")  # they keep results in `.work`, which a test must make itself


def call(stage: str, params_file: Path, *arguments: Path | str | int) -> None:
    """Runs the stage's `main` with its sections of `params_file` and its paths in the order of its signature."""
    main = importlib.import_module(f"stages.{stage}").main
    sections = sections_of(main, f"stages.{stage}", params_file)
    names = [name for name in inspect.signature(main).parameters if name not in sections]
    values = dict(zip(names, arguments, strict=False))
    if "params_file" in names:
        values["params_file"] = params_file
    with TemporaryDirectory() as aside, chdir(aside) if stage in OF_DATA else nullcontext():
        main(**sections, **values)
