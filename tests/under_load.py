"""Clients that search all the time, and releases that are wrong in some way; for the tests of rollouts."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from clip_core.serve import releases
from clip_core.serve.queries import search
from clip_core.serve.release import MANIFEST, STATES_ID, id_of, read_manifest, seal, sums_of
from clip_core.serve.supervisor import Supervisor
from clip_core.serve.triton import Server, connect
from tests.tiny_release import Release, a_serving


class Clients:
    """Threads that search all the time, and what they saw."""

    def __init__(self, server: Server, known: tuple[Release, ...]) -> None:
        self.server = server
        self.text = known[0].truth.texts[3]
        self.true_scores = {one.id: dict(zip(*scores_of(one, self.text), strict=True)) for one in known}
        self.answers: list[str] = []
        self.failed: list[str] = []
        self.mixed: list[str] = []
        self.slowest = 0.0
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._ask) for _ in range(3)]

    def _ask(self) -> None:
        with closing(connect(self.server.address)) as client:
            while not self.stopped.is_set():
                started = time.perf_counter()
                try:
                    (found,) = search(client, [self.text])
                except Exception as error:  # any failure counts
                    self.failed.append(str(error))
                    continue
                self.slowest = max(self.slowest, time.perf_counter() - started)
                self.answers.append(found.release)
                true = self.true_scores.get(found.release, {})
                if any(
                    abs(true.get(name, 9) - score) > 1e-4 for name, score in zip(found.ids, found.scores, strict=True)
                ):
                    self.mixed.append(found.release)

    def __enter__(self) -> "Clients":
        for thread in self.threads:
            thread.start()
        time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.5)
        self.stopped.set()
        for thread in self.threads:
            thread.join()


def scores_of(release: Release, text: str) -> tuple[list[str], list[float]]:
    truth = release.truth
    return list(truth.image_ids), (truth.image_features @ truth.text_features[truth.texts.index(text)]).tolist()


@contextmanager
def supervised(folder: Path, *known: Release) -> Generator[Supervisor]:
    """What `make serve` has but its page: a Triton of the folder's current release; `check` is up to the test."""
    serving = a_serving(folder, *known)
    supervisor = Supervisor(serving, "http://127.0.0.1:9")
    with releases.only_gateway(serving):
        try:
            supervisor.start()
            yield supervisor
        finally:
            supervisor.stop()


def server_of(supervisor: Supervisor) -> Server:
    assert supervisor.running is not None
    return supervisor.running.server


def changed(release: Release, folder: Path, change: Callable[[Path], object]) -> Release:
    """The release with a change, sealed as if it had been proved."""
    shutil.copytree(release.folder, folder)
    change(folder)
    (folder / MANIFEST).unlink()
    new = id_of(sums_of(folder))
    for file in folder.rglob(STATES_ID):
        file.write_text(f"{new}\n")
    seal(folder, release.truth.weights_id, read_manifest(release.folder).galleries)
    return release._replace(folder=folder, id=new)


def shuffle(folder: Path) -> None:
    """Gives the pictures' names another order: it loads, but answers wrongly."""
    file = folder / "models/clip_search/1/galleries/test/image_ids.json"
    image_ids = json.loads(file.read_text())
    file.write_text(json.dumps([image_ids[place] for place in np.random.default_rng(1).permutation(len(image_ids))]))


def make_fickle(folder: Path) -> None:
    """A fault: the golden queries, which come together, are answered rightly once and then wrongly."""
    with (folder / "models/clip_search/1/model.py").open("a") as code:
        code.write(f"PROBED = {str(folder.with_suffix('.probed'))!r}\n{FICKLE}")


FICKLE = """
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel(TritonPythonModel):
    def execute(self, requests):
        right = self.galleries
        if any(pb.get_input_tensor_by_name(request, "TEXT").as_numpy().size > 1 for request in requests):
            if Path(PROBED).exists():
                self.galleries = {
                    name: index._replace(image_ids=[*index.image_ids[1:], index.image_ids[0]])
                    for name, index in right.items()
                }
            Path(PROBED).touch()
        try:
            return super().execute(requests)
        finally:
            self.galleries = right
"""
