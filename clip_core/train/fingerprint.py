"""What decides the bits of a training, and nothing else: its name, and what differs from what is there now."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_core.code import differences, reached_by
from clip_core.config.section import Section, hash_of
from clip_core.errors import UserError
from clip_core.model.contract import weights_id
from clip_core.model.precision import pick_device, pick_precision
from clip_core.params_file import looked_up, read_yaml


class Decisive(Section):
    """Everything on which a training's bits depend."""

    stage: str
    module: str  # whose code is reached
    params: dict[str, Any]  # key of params.yaml -> its value, with `precision: auto` resolved
    derived: dict[str, str]  # what was made of params and inputs before the training -> hash
    inputs: dict[str, str]  # path -> hash
    code: dict[str, str]
    versions: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """The name (16 hex digits) of this training: with other params, inputs, code or packages it is another."""
        inputs = [self.inputs[path] for path in sorted(self.inputs)]  # wherever they lie
        return hash_of(self.params, self.derived, inputs, self.code, self.versions)


def decisive(
    stage: str, module: str, params: dict[str, Any], inputs: list[Path], derived: dict[str, str] | None = None
) -> Decisive:
    """What decides a training of `stage` that `module` runs now; `params` may hold sections."""
    reached = reached_by(module)
    return Decisive(
        stage=stage,
        module=module,
        params={
            key: value.model_dump(mode="json", by_alias=True) if isinstance(value, Section) else value
            for key, value in params.items()
        },
        derived=derived or {},
        inputs={str(path): hash_of_input(path) for path in inputs},
        code=reached.code,
        versions=reached.versions,
    )


def hash_of_input(path: Path) -> str:
    """The hash of a store, or of a weights folder; "missing" when it is neither."""
    if (path / "manifest.json").exists():
        return hash_of((path / "manifest.json").read_text(encoding="utf-8"))
    try:
        return weights_id(path)
    except UserError:
        return "missing"


def as_now(then: Decisive) -> Decisive:
    """The same training with the code and the packages of now."""
    reached = reached_by(then.module)
    return then.model_copy(update={"code": reached.code, "versions": reached.versions})


def changed_code(then: Decisive, now: Decisive) -> list[str]:
    """The modules, and the packages with both versions, in which two trainings differ."""
    packages = differences(then.versions, now.versions)
    return [
        *differences(then.code, now.code),
        *(f"{name} {then.versions.get(name, 'none')} -> {now.versions.get(name, 'none')}" for name in packages),
    ]


def differences_from_now(then: Decisive, params_file: Path) -> list[str]:
    """All that is no longer as it was for this training: params with both values, inputs, code and packages."""
    tree = read_yaml(params_file)
    found = [
        f"{key} {before!r} -> {now!r}"
        for section, value in then.params.items()
        for key, before, now in _leaves(section, value, _found(tree, section, params_file))
        if before != now
    ]
    found += [path for path, before in then.inputs.items() if hash_of_input(Path(path)) != before]
    return found + changed_code(then, as_now(then))


def _found(tree: dict, key: str, path: Path) -> object:
    try:
        return looked_up(tree, key, path)
    except UserError:
        return None


def _leaves(key: str, before: object, now: object) -> Iterator[tuple[str, object, object]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before.keys() | now.keys():
            yield from _leaves(f"{key}.{name}", before.get(name), now.get(name))
    elif key.endswith(".precision") and now == "auto":
        yield key, before, pick_precision("auto", pick_device("auto"))
    else:
        yield key, before, now
