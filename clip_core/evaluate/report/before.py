"""The run before, as git has it: its figures, and which params, code and data were others."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

LOCK = Path("dvc.lock")
LEFT_OUT = ("check", "report")  # one reads all params, also those that decide nothing; the other has not run yet
ABSENT = "\N{EN DASH}"


@dataclass(frozen=True)
class Before:
    """A committed run, and how this one differs."""

    commit: str
    date: str
    metrics: Mapping  # its reports/metrics.json
    params: Mapping[str, tuple[str, str]]  # path -> then, now
    code: list[str]  # stages whose code or packages were others
    data: bool  # whether the packed pairs were others


def run_before(metrics: Path, now: Mapping, lock: Path = LOCK) -> Before | None:
    """The newest commit whose file `metrics` says other than `now`; None where git has none.

    The differences are those of the two `lock` files: DVC writes there what each stage of a run was given.
    """
    for line in _git("log", "--format=%h %cs", "--", str(metrics)).splitlines():
        commit, date = line.split()
        then = json.loads(_git("show", f"{commit}:./{metrics}") or "{}")
        if then and then != now:
            old, new = _given(_git("show", f"{commit}:./{lock}")), _given(lock.read_text(encoding="utf-8"))
            changed = [
                {name: (then.get(name, ABSENT), now.get(name, ABSENT)) for name in {**then, **now}}
                for then, now in zip(old, new, strict=True)
            ]
            params, code, data = ({name: both for name, both in one.items() if both[0] != both[1]} for one in changed)
            return Before(commit, date, then, dict(sorted(params.items())), sorted(code), bool(data))
    return None


def _given(lock: str) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """What a dvc.lock tells of params, of the code of each stage, and of the packed pairs."""
    params, code, data = {}, {}, {}
    stages = (YAML(typ="safe").load(lock) or {}).get("stages") or {}
    for name, stage in stages.items():
        if name in LEFT_OUT:
            continue
        params |= dict(_flat(stage.get("params", {}).get("params.yaml", {})))
        for dep in stage.get("deps", []):
            if dep["path"].startswith("data/checked/"):
                code[name.partition("@")[0]] = dep["md5"]
            if dep["path"] == "data/packed":
                data["packed"] = dep["md5"]
    return params, code, data


def _flat(tree: object, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(tree, ensure_ascii=False)


def _git(*arguments: str) -> str:
    """What the git command prints; nothing where there is no git, no repository or no such file."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=True, encoding="utf-8").stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
