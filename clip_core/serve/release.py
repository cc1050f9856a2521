"""Releases on a live Triton server: stage, probe, publish, roll back, retire.

Every release has models of its own, whose names end in its number (`clip_text_r2`, `text_core_r2`, ...). The public
names are one-step ensembles that stand for those of the published release, and their version is its number. So what
serves is just what was probed, and a switch loads nothing: no request waits for it or meets half of it.
"""

import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_core.errors import UserError
from clip_core.files import atomic_write
from clip_core.serve.golden import GOLDEN_FOLDER, probe, read_golden
from clip_core.serve.model_repository import MODELS, PUBLIC, read_config

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

DRAIN_SECONDS = 2.0  # for requests on their way through a release that is no longer published
UNLOAD_SECONDS = 60


def new_live_repository(repository: Path, live: Path) -> list[str]:
    """Makes the folder `live` from the model repository, as release 1; returns the models to load, in order."""
    live.mkdir(parents=True)
    number = add_release(repository, live)
    _point_public_names(live, number)
    return [*_models_of(number), *PUBLIC]


def releases_in(live: Path) -> list[int]:
    """The numbers of the releases in the live repository, of which a killed rollout may have left but a part."""
    return sorted({_number(folder.name) for model in MODELS for folder in live.glob(f"{model}_r*")})


def published(live: Path) -> int:
    """The number of the release that the public names stand for."""
    (step,) = read_config(live / "clip_search" / "config.pbtxt").ensemble_scheduling.step
    return _number(step.model_name)


def add_release(repository: Path, live: Path) -> int:
    """Copies the model repository into the live one, under the next number, which it returns."""
    read_golden(repository / "clip_search" / GOLDEN_FOLDER)  # a release without is refused
    number = max(releases_in(live), default=0) + 1
    for model in MODELS:
        aside = live / f".{model}"
        shutil.rmtree(aside, ignore_errors=True)  # of a rollout that was killed
        shutil.copytree(repository / model, aside)
        for file in aside.rglob("*.pbtxt"):
            config = read_config(file)
            for step in config.ensemble_scheduling.step:
                step.model_name += f"_r{number}"
            atomic_write(file, str(config))
        aside.rename(live / f"{model}_r{number}")
    return number


def stage(client: "InferenceServerClient", repository: Path, live: Path) -> int:
    """Loads the release in `repository` beside the one that serves; returns its number.

    A release that can not be loaded is removed again, and ValueError says why. What a killed rollout left goes first.
    """
    if len(releases_in(live)) > 1:
        _switch(client, live, published(live))  # killed while publishing, it left some names with either release
        _retire_unpublished(client, live)
    try:
        number = add_release(repository, live)
        for model in _models_of(number):
            _load(client, model)
    except BaseException:
        _retire_unpublished(client, live)
        raise
    return number


def probe_release(client: "InferenceServerClient", live: Path, number: int) -> dict[str, float]:
    """Sends the golden queries to the release by its own names; WrongAnswers when it fails them."""
    return probe(client, read_golden(live / f"clip_search_r{number}" / GOLDEN_FOLDER), f"_r{number}")


def probe_public(client: "InferenceServerClient", live: Path) -> dict[str, float]:
    """Sends the golden queries of the published release to the public names; WrongAnswers when they fail."""
    return probe(client, read_golden(live / f"clip_search_r{published(live)}" / GOLDEN_FOLDER))


def publish(client: "InferenceServerClient", live: Path, number: int) -> int:
    """Makes the public names stand for the (loaded) release; returns the number of the one they stood for before.

    Rolling back is publishing that one again.
    """
    before = published(live)
    try:
        _switch(client, live, number)
    except BaseException:
        _switch(client, live, before)
        raise
    return before


def retire(client: "InferenceServerClient", live: Path, number: int) -> None:
    """Unloads the release and removes its files; it must not be the published one."""
    if number == published(live):
        raise UserError(f"release {number} is published; publish another one before it is retired")
    time.sleep(DRAIN_SECONDS)
    known = {entry.name for entry in client.get_model_repository_index().models}
    for model in reversed(_models_of(number)):  # a model goes after those that ask it, with their last requests
        if model in known:
            client.unload_model(model)  # returns before it is done
            _wait_until_unloaded(client, model)
    for model in _models_of(number):
        shutil.rmtree(live / model, ignore_errors=True)


@contextmanager
def one_rollout_at_a_time(live: Path) -> Generator[None]:
    """Holds the live repository for one rollout; ValueError when another one is at it."""
    lock = os.open(live, os.O_RDONLY)
    try:
        flock(lock, LOCK_EX | LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{live}: another rollout is running; wait for it and try again") from None
    finally:
        os.close(lock)


def _retire_unpublished(client: "InferenceServerClient", live: Path) -> None:
    for number in releases_in(live):
        if number != published(live):
            retire(client, live, number)


def _models_of(number: int) -> list[str]:
    return [f"{model}_r{number}" for model in MODELS]


def _number(name: str) -> int:
    return int(name.rpartition("_r")[2])


def _switch(client: "InferenceServerClient", live: Path, number: int) -> None:
    _point_public_names(live, number)
    for name in PUBLIC:
        _load(client, name)
        for version in (live / name).iterdir():
            if version.is_dir() and version.name != str(number):
                shutil.rmtree(version)


def _point_public_names(live: Path, number: int) -> None:
    for name in PUBLIC:
        version = live / name / str(number)
        version.mkdir(parents=True, exist_ok=True)
        (version / "release.txt").write_text(f"{name}_r{number}\n", encoding="utf-8")
        config = _alias(read_config(live / f"{name}_r{number}" / "config.pbtxt"), f"{name}_r{number}", number)
        atomic_write(live / name / "config.pbtxt", str(config))


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


def _load(client: "InferenceServerClient", model: str) -> None:
    from tritonclient.utils import InferenceServerException

    try:
        client.load_model(model)
    except InferenceServerException as error:
        raise UserError(f"Triton can not load {model}: {error.message()}") from None


def _wait_until_unloaded(client: "InferenceServerClient", model: str) -> None:
    deadline = time.monotonic() + UNLOAD_SECONDS
    while time.monotonic() < deadline:
        states = {entry.state for entry in client.get_model_repository_index().models if entry.name == model}
        if states <= {"", "UNAVAILABLE"}:  # "" if it was never loaded
            return
        time.sleep(0.1)
    raise UserError(f"Triton did not unload {model} within {UNLOAD_SECONDS} s")
