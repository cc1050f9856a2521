"""The command line of a stage: its paths from the signature of `main`, its params from what dvc.yaml declares."""

import inspect
import json
import os
import sys
import traceback
import typing
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from clip_core.code import ROOT, differences, reached_by
from clip_core.config.section import Section
from clip_core.env import set_switches
from clip_core.errors import UserError, told_to_the_user
from clip_core.files import atomic_write
from clip_core.guard import end_with_owner
from clip_core.params_file import looked_up, read_yaml, validated

PIPELINES = ("dvc.yaml", "recipes/ablation/dvc.yaml")
CHECKED = Path("data/checked")  # what `check` found: the code and the versions that each stage reaches


def run(main: Callable[..., None]) -> None:
    """Runs `main` with paths from the command line and its sections of `params.yaml`.

    A mistake of the user's becomes a message and exit code 2, an error of ours keeps its traceback (exit code 1); how
    it ended stands in `.work/<stage>/outcome.json`, too, since DVC hides the exit code.
    """
    set_switches()
    module = module_of(main)
    arguments = parsed(main, sys.argv[1:])
    stage = os.environ.get("DVC_STAGE", module.rpartition(".")[2]).rpartition(":")[2]
    with _outcome(stage) if os.environ.get("RANK", "0") == "0" else told_to_the_user():
        if "DVC_STAGE" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_owner()
        _refuse_what_check_has_not_seen(module)
        main(**sections_of(main, module), **arguments)


def module_of(main: Callable[..., None]) -> str:
    """The stage's own name: as a command it is __main__."""
    return main.__globals__["__spec__"].name  # ty: ignore[missing-attribute]


def parsed(main: Callable[..., None], arguments: list[str]) -> dict[str, object]:
    """The paths (and whatever else is no section of params) that `main` gets from the command line."""
    import tyro

    signature = inspect.signature(main)
    asked = [p for p in signature.parameters.values() if p.name not in sections_in(main)]

    def collect(**values: object) -> dict[str, object]:
        return values

    collect.__annotations__ = {parameter.name: parameter.annotation for parameter in asked} | {"return": dict}
    collect.__signature__ = signature.replace(parameters=asked, return_annotation=dict)  # ty: ignore[missing-attribute]
    return tyro.cli(collect, args=arguments, prog=f"python -m {module_of(main)}", description=main.__doc__)


def sections_of(main: Callable[..., None], module: str, params_file: Path = Path("params.yaml")) -> dict[str, Section]:
    """What `main` reads of the params file: `params` as dvc.yaml declares them, and sections that no stage declares."""
    tree = read_yaml(params_file)
    loaded = {}
    for name, kind in sections_in(main).items():
        declares = name == "params"
        part = {key: looked_up(tree, key, params_file) for key in declared(module)} if declares else tree.get(name, {})
        loaded[name] = validated(kind, part, params_file)
    return loaded


def declared(module: str) -> set[str]:
    """The params that dvc.yaml, or the ablation's, declares for the stage that runs `module`."""
    for pipeline in PIPELINES:
        for stage in read_yaml(ROOT / pipeline)["stages"].values():
            entry = stage.get("do", stage)
            if module in entry["cmd"].split():
                return set(entry.get("params", ()))
    raise AssertionError(f"no stage runs {module}")


def sections_in(main: Callable[..., None]) -> dict[str, type[Section]]:
    """The arguments of `main` that are sections of params."""
    hints = typing.get_type_hints(main)
    return {name: kind for name, kind in hints.items() if isinstance(kind, type) and issubclass(kind, Section)}


def _refuse_what_check_has_not_seen(module: str) -> None:
    """Raises UserError where code or packages are not those that `check` wrote down, and so not what DVC knows."""
    file, now = CHECKED / f"{module.rpartition('.')[2]}.json", reached_by(module)
    if not file.exists():
        return  # `check` itself; DVC does not start another stage without it
    seen = json.loads(file.read_text(encoding="utf-8"))
    if changed := differences(seen["code"], now.code):
        raise UserError(f"{', '.join(changed)}: changed since `check` looked; run `dvc repro` again")
    if changed := differences(seen["versions"], now.versions):
        lines = [f"{name}: installed {now.versions.get(name)}, locked {seen['versions'].get(name)}" for name in changed]
        raise UserError(
            f"other packages than those of requirements.lock: {'; '.join(lines)}. `make setup` installs the locked ones"
        )


@contextmanager
def _outcome(stage: str) -> Generator[None]:
    """Tells how the block ended, for people on the screen and for the flow in a file."""

    def write(kind: str, message: str = "") -> None:
        content = json.dumps({"kind": kind, "message": message}, ensure_ascii=False)
        atomic_write(Path(".work") / stage / "outcome.json", content)

    def write_if_there_is_room(kind: str, message: str) -> None:
        with suppress(UserError):  # the error itself is what must be told
            write(kind, message)

    try:
        with told_to_the_user():
            try:
                yield
                write("done")
            except UserError as error:
                write_if_there_is_room("refused", str(error))
                raise
    except Exception:
        write_if_there_is_room("failed", traceback.format_exc())
        raise
