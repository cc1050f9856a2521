"""24 nights on data that change: all end well, the disk stays bounded, and what is promoted or refused is as it should.

A toy pipeline and tiny releases on a real Prefect server; `NIGHTS=6` in the environment takes fewer.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from clip_core.files import atomic_write
from clip_core.guard import free_port
from clip_core.params_file import read_yaml
from clip_core.serve import releases
from flows.server import server
from tests.conftest import ROOT, commit_all
from tests.toy_pipeline import new_toy, run_flow

if TYPE_CHECKING:
    from clip_core.data.store import Store
    from clip_core.model.clip import CLIP

NIGHTS = int(os.environ.get("NIGHTS", "24"))
OF_A_NIGHT = 2 * 2**20  # bytes of new data; those of the last three nights are there
ALLOWED = 1.25  # times the most that the first third of the nights took
# The release that the pipeline makes from this night on.
MADE = {1: "random", 4: "trained", 10: "worse", 13: "trained", 18: "equal"}
NO_NEWS = 6  # every so many nights nothing has changed
PIPELINE = """
stages:
  ingest:
    cmd: mkdir -p data/raw && cat pairs/* > data/raw/pairs
    deps: [pairs]
    outs: [data/raw]
  evaluate: # the version's card says with which confidence
    foreach: [test]
    do:
      cmd: cp choice data/measured
      deps: [choice]
      params: [evaluate]
      outs: [data/measured]
  deploy:
    cmd: mkdir -p models && cp -r "$(cat choice)" models/release
    deps: [choice, data/raw]
    outs: [models/release]
"""
NIGHT = """
import asyncio
from flows.nightly import nightly
from flows.upkeep import housekeeping
state = asyncio.run(nightly(return_state=True))
print("the night has", state.name, state.message)
housekeeping(days=0, yes=True)
"""


def prove() -> dict:
    """Each night: its outcome, what serves, and what the project takes on disk."""
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(Path(scratch) / "prefect"))
        made = make_releases(Path(scratch))
        toy = a_project(Path(scratch))
        draw, nights = np.random.default_rng(1), []
        with server(free_port()) as api:
            for night in range(1, NIGHTS + 1):
                has_news = night % NO_NEWS != 0
                if has_news:
                    new_data(toy, night, draw.bytes(OF_A_NIGHT))
                if night in MADE:
                    (toy / "choice").write_text(str(made[MADE[night]]), encoding="utf-8")
                before = len(releases.history(toy / "serving"))
                code, output = run_flow(toy, api, "-c", NIGHT)
                assert code == 0 and "the night has Completed" in output, output
                events = [f"{one.event} {name_of(made, one.release)}" for one in releases.history(toy / "serving")]
                nights.append(
                    {
                        "night": night,
                        "news": has_news,
                        "serves": name_of(made, releases.current(toy / "serving")),
                        "events": events[before:],
                        "mib": round(disk_use(toy) / 2**20, 1),
                    }
                )
                print(nights[-1], flush=True)
    as_they_should(nights)
    return {"nights": nights, "brought_mib": sum(night["news"] for night in nights) * OF_A_NIGHT / 2**20}


def as_they_should(nights: list[dict]) -> None:
    """Only the trained one is promoted, and only in its first night; the disk does not grow with the nights."""
    happened = [(night["night"], event) for night in nights for event in night["events"]]
    assert [one for one in happened if one[1].startswith("promoted")] == [(4, "promoted trained")]
    refused = {event for _, event in happened if event.startswith("refused")}
    assert refused <= {"refused worse", "refused equal"}
    assert all(night["serves"] == ("trained" if night["night"] >= 4 else "random") for night in nights)
    if len(nights) == 24:
        assert len(refused) == 2
    first = max(night["mib"] for night in nights[: len(nights) // 3 or 1])
    assert max(night["mib"] for night in nights) <= ALLOWED * first


def a_project(scratch: Path) -> Path:
    """The repository, with a test for the promotion to ask about, and rollouts that nobody has to approve."""
    toy = scratch / "project"
    toy.mkdir()
    new_toy(toy)
    (toy / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    params = read_yaml(ROOT / "params.yaml")
    params["promotion"] |= {"approval": False, "max_slowdown": 100.0}
    params["releases"]["keep"] = 2
    atomic_write(toy / "params.yaml", json.dumps(params))
    (toy / "data" / "packed").mkdir(parents=True)
    (toy / "data" / "packed" / "test").symlink_to(scratch / "store")
    with (toy / ".gitignore").open("a", encoding="utf-8") as file:
        file.write("/data\n/models\n/serving\n/pairs\n/choice\n")
    commit_all(toy)
    return toy


def new_data(toy: Path, night: int, data: bytes) -> None:
    atomic_write(toy / "pairs" / f"{night:02d}", data)
    (toy / "pairs" / f"{night - 3:02d}").unlink(missing_ok=True)


def make_releases(scratch: Path) -> dict[str, Path]:
    """Two of random weights, one that was trained, and one that answers as that does."""
    from tests.tiny import tiny_store
    from tests.tiny_release import make_release
    from tests.under_load import changed

    store = tiny_store(scratch / "store")
    trained = make_release(scratch / "trained", store, seed=3, trained=trained_on(store))
    return {
        "random": make_release(scratch / "random", store, seed=1).folder,
        "worse": make_release(scratch / "worse", store, seed=2).folder,
        "trained": trained.folder,
        "equal": changed(trained, scratch / "equal", lambda made: (made / "golden" / "note").touch()).folder,
    }


def trained_on(store: "Store") -> "CLIP":
    """A tiny model that finds the pictures of the store by their names."""
    import torch

    from clip_core.evaluate.benchmark import read_benchmark
    from clip_core.image import Preprocessing, pixels_of
    from clip_core.text import parse_tokenizer
    from clip_core.train.loss import contrastive_loss
    from tests.tiny import IMAGE_SIZE, tiny_clip, tiny_tokenizer_json

    tokenizer_json, asked = tiny_tokenizer_json(store), read_benchmark(store)
    model = tiny_clip(tokenizer_json, seed=3).train()
    pictures = [pixels_of(store.image_bytes(i), IMAGE_SIZE, Preprocessing()) for i in range(len(store))]
    pixels = torch.from_numpy(np.stack(pictures))
    texts, images = torch.from_numpy(asked.pairs).T
    token_ids = torch.from_numpy(parse_tokenizer(tokenizer_json, 16)(asked.texts))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        image_features, text_features = model.encode_images(pixels[images]), model.encode_texts(token_ids[texts])
        loss = contrastive_loss(image_features, text_features, model.logit_scale.exp(), kinds=texts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def name_of(made: dict[str, Path], release: str | None) -> str:
    from clip_core.serve.release import read_manifest

    return {read_manifest(folder).release: name for name, folder in made.items()}.get(release or "", "nothing")


def disk_use(folder: Path) -> int:
    """Bytes; what has several names counts once."""
    found = [path.lstat() for path in folder.rglob("*")]
    return sum({one.st_ino: one.st_blocks * 512 for one in found}.values())
