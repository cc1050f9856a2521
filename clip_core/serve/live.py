"""Releases on a live Triton server: loaded beside the one that serves, asked, made public, unloaded.

Every release has models of its own, whose names end in its id (`clip_text_<id>`, `text_core_<id>`, ...). The public
names are one-step ensembles that stand for those of one release. So what serves is just what was probed, and a switch
loads nothing: no request waits for it or meets half of it.
"""

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from clip_core.errors import UserError
from clip_core.files import atomic_write
from clip_core.serve.assemble import MODELS, PUBLIC, read_config
from clip_core.serve.golden import probe, read_golden
from clip_core.serve.release import RELEASE_ID, STATES_ID, link_tree
from clip_core.serve.triton import Triton

INNER = ("text_preprocess", "text_core", "image_preprocess", "image_core")
# Unloaded at once, and in the other order: a model goes after those that ask it, with their last requests.
WAVES = (INNER, ("clip_text", "clip_image"), ("clip_search", "clip_similar", "clip_classify"))
# Triton 2.51 loads a model a second time, with an ensemble that asks it, when something in its folder is newer than
# before; and its Python writes bytecode there (isolated, it heeds no variable). Nothing is newer than this.
FAR = 4_102_444_800  # the year 2100
DRAIN_SECONDS = 2.0  # for requests on their way through a release that is no longer public


def load(triton: Triton, folder: Path, release: str) -> None:
    """Loads the release in `folder` under names of its own; UserError when Triton can not."""
    live = triton.server.live
    if missing := [model for model in MODELS if not (folder / "models" / model).is_dir()]:
        raise UserError(f"{folder}: made before there was {', '.join(missing)}; make the release again: `make run`")
    for model in MODELS:
        if not (place := live / f"{model}_{release}").exists():
            aside = live / f".{model}_{release}"
            shutil.rmtree(aside, ignore_errors=True)  # of a rollout that was killed
            link_tree(folder / "models" / model, aside)
            for file in aside.rglob("*.pbtxt"):
                config = read_config(file)
                for step in config.ensemble_scheduling.step:
                    step.model_name += f"_{release}"
                file.unlink()  # the release's own stays as it is
                file.write_text(str(config), encoding="utf-8")
            os.utime(aside, (FAR, FAR))
            aside.rename(place)
    # One after the other: Triton 2.51 may abort (boost's lock_exception) while it loads several Python models at once.
    for model in chain(*WAVES):
        triton.load(f"{model}_{release}")


def probe_release(triton: Triton, folder: Path, release: str) -> dict[str, float]:
    """Sends the golden queries to the loaded release by its own names; WrongAnswers when it fails them."""
    return probe(triton.client, read_golden(folder / "golden"), release, f"_{release}")


def probe_public(triton: Triton, folder: Path, release: str) -> dict[str, float]:
    """Sends the golden queries of the release to the public names; WrongAnswers when they fail."""
    return probe(triton.client, read_golden(folder / "golden"), release)


def publish(triton: Triton, release: str, number: int) -> None:
    """Makes the public names stand for the loaded release; `number`, never used before, becomes their version."""
    live = triton.server.live
    for name in PUBLIC:
        version = live / name / str(number)
        version.mkdir(parents=True, exist_ok=True)
        (version / STATES_ID).write_text(f"{release}\n", encoding="utf-8")
        config = _alias(read_config(live / f"{name}_{release}" / "config.pbtxt"), f"{name}_{release}", number)
        atomic_write(live / name / "config.pbtxt", str(config))
    for name in PUBLIC:
        triton.load(name)
        for version in (live / name).iterdir():
            if version.is_dir() and version.name != str(number):
                shutil.rmtree(version)


def public_release(triton: Triton) -> str | None:
    """The release that all public names stand for, as Triton says; None where they stand for several, or for none."""
    states = triton.states()
    if any(states.get(name) != "READY" for name in PUBLIC):
        return None
    targets = {_release_in(triton.config(name).ensemble_scheduling.step[0].model_name) for name in PUBLIC}
    return targets.pop() if len(targets) == 1 else None


def is_loaded(triton: Triton, release: str) -> bool:
    """Whether every model of the release is ready."""
    states = triton.states()
    return all(states.get(f"{model}_{release}") == "READY" for model in MODELS)


def others(triton: Triton, *wanted: str | None) -> dict[str, list[Path]]:
    """Every other release that is there, whole or in parts, and its folders in the live repository."""
    found: dict[str, list[Path]] = {}
    for path in triton.server.live.iterdir():
        if path.is_dir() and path.name not in PUBLIC:
            found.setdefault(_release_in(path.name), []).append(path)
    return {release: paths for release, paths in found.items() if release not in wanted}


def unload_others(triton: Triton, release: str, canary: str | None) -> None:
    """Unloads every release but this one, which is public, and a canary, and removes them from the live repository."""
    folders = others(triton, release, canary)
    if not folders:
        return
    if public_release(triton) != release:
        raise UserError(f"release {release} is not public: what is may not be unloaded")
    time.sleep(DRAIN_SECONDS)
    states = triton.states()
    for other, paths in folders.items():
        for wave in reversed(WAVES):
            names = [f"{model}_{other}" for model in wave]
            _at_once(triton.unload, [name for name in names if states.get(name, "UNAVAILABLE") != "UNAVAILABLE"])
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)


def _at_once(do: Callable[[str], None], models: list[str]) -> None:
    with ThreadPoolExecutor(max(1, len(models))) as threads:
        list(threads.map(do, models))


def _release_in(model: str) -> str:
    release = model.rpartition("_")[2]
    assert RELEASE_ID.fullmatch(release), model
    return release


def _alias(config: Any, target: str, version: int) -> Any:
    """The configuration of a model that passes everything on to `target`, whose configuration is `config`."""
    alias = type(config)(platform="ensemble", max_batch_size=config.max_batch_size)
    alias.input.extend(config.input)
    alias.output.extend(config.output)
    alias.version_policy.specific.versions.append(version)
    step = alias.ensemble_scheduling.step.add(model_name=target, model_version=-1)
    for tensor in config.input:
        step.input_map[tensor.name] = tensor.name
    for tensor in config.output:
        step.output_map[tensor.name] = tensor.name
    return alias
