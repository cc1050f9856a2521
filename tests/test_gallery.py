"""From a released checkpoint to Triton: imported, served with a folder of pictures, and asked; no pipeline."""

import io
import json
import os
import sys
import urllib.request
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

import clip_core
from clip_core.image import AS_RELEASED
from clip_core.model.contract import Contract, read_contract
from clip_core.serve import gallery, releases
from clip_core.serve.client import ask
from clip_core.serve.queries import encode_images, encode_texts, search
from clip_core.serve.release import verify
from clip_core.serve.rollout import roll_back, roll_out
from clip_core.serve.triton import connect
from clip_core.text import build_tokenizer
from tests.conftest import ROOT, run_in
from tests.odd_pictures import ODD
from tests.served import serving
from tests.test_parity_serving import TEXTS
from tests.tiny import MADE, tiny_clip

PICTURES = {f"图片/{number:02}.png": make() for number, make in enumerate(ODD.values())}  # what they are, bytes say


class Road(NamedTuple):
    weights: Path
    pictures: Path
    out: Path
    said: str


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    """A file in the released layout, imported and made ready for Triton with a folder of odd pictures."""
    from clip_core.model.pretrained.importing import import_checkpoint
    from tests.released import save_as_released
    from tests.test_parity_reference import random_reference

    folder = tmp_path_factory.mktemp("road")
    weights, pictures, out = (folder / name for name in ("weights", "pictures", "served"))
    import_checkpoint(save_as_released(random_reference("ViT"), folder / "clip_cn.pt"), weights, None, None)
    (pictures / "图片").mkdir(parents=True)
    for name, picture in PICTURES.items():
        (pictures / name).write_bytes(picture)
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff, and nothing more")
    (pictures / "notes.txt").write_text("no picture")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr(sys, "argv", ["gallery", str(weights), str(pictures), str(out), "--top-k", "3"])
        gallery.main()
    return Road(weights, pictures, out, said.getvalue())


@pytest.mark.filterwarnings("ignore:texts longer than")
def test_a_released_checkpoint_answers_from_triton_as_in_torch(road: Road, tmp_path: Path) -> None:
    predictor = clip_core.load(road.weights)
    texts, images = predictor.encode_texts(TEXTS), predictor.encode_images(list(PICTURES.values()))
    with serving(tmp_path, "--serving", str(road.out), "--no-browser") as (url, _):
        with closing(connect(json.loads((road.out / "running.json").read_text())["address"])) as client:
            np.testing.assert_allclose(encode_texts(client, TEXTS), texts, atol=1e-5)
            np.testing.assert_allclose(encode_images(client, list(PICTURES.values())), images, atol=1e-5)
            found = search(client, TEXTS)
        printed = run_in(ROOT, sys.executable, "-m", "clip_core.serve.client", TEXTS[0], "--url", url).stdout

    best = -np.sort(-(texts @ images.T))[:, :3]
    np.testing.assert_allclose([answer.scores for answer in found], best, atol=1e-5)
    manifest = verify(releases.folder_of(road.out, found[0].release))
    assert {answer.release for answer in found} == {manifest.release}
    assert manifest.weights == predictor.weights_id
    assert [line.split()[1] for line in printed.splitlines()[:3]] == found[0].ids
    assert set(found[0].ids) < set(PICTURES)
    served = releases.folder_of(road.out, manifest.release) / "models/image_preprocess/1"
    assert read_contract(served).preprocessing == AS_RELEASED
    assert {path.name for path in road.out.iterdir() if path.is_dir()} == {"releases", "current"}


def test_a_picture_that_can_not_be_read_is_named_and_left_out(road: Road) -> None:
    assert f"left out: {road.pictures}/broken.jpg: " in road.said
    assert f"{len(PICTURES)} of {len(PICTURES) + 1} pictures" in road.said
    assert f"next: python -m clip_core.serve.gateway --serving {road.out}" in road.said


def test_every_picture_that_is_not_there_or_can_not_be_opened_is_named_and_the_others_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, decode = tmp_path / "pictures", gallery.pixels_of
    pictures.mkdir()
    for name in ("a.png", "vanishing.png", "z.png"):
        (pictures / name).write_bytes(next(iter(PICTURES.values())))
    for name, target in (("loop", "loop.png"), ("dangling", "nowhere"), ("refusing", "/proc/self/mem")):
        (pictures / f"{name}.png").symlink_to(target)
    (pictures / os.fsdecode(b"\xff.png")).write_bytes(next(iter(PICTURES.values())))
    (pictures / "folder.png").mkdir()
    os.mkfifo(pictures / "pipe.png")

    def decode_while_another_deletes(*arguments: Any) -> np.ndarray:
        (pictures / "vanishing.png").unlink(missing_ok=True)
        return decode(*arguments)

    monkeypatch.setattr(gallery, "pixels_of", decode_while_another_deletes)
    contract = Contract(architecture=tiny_clip(build_tokenizer(["猫"])).architecture, made=MADE)
    store = gallery.store_pictures(pictures, contract, tmp_path / "store")
    assert store.image_ids == ["a.png", "z.png"]
    *left_out, total = capsys.readouterr().out.splitlines()
    assert [line.removeprefix(f"left out: {pictures}/") for line in left_out] == [
        "dangling.png: No such file or directory",
        "loop.png: Too many levels of symbolic links",
        "refusing.png: Input/output error",
        "vanishing.png: No such file or directory",
        "\N{REPLACEMENT CHARACTER}.png: its name is not UTF-8; rename it",
    ]
    assert total == f"2 of 7 pictures in {pictures} can be found"


def test_what_is_in_the_way_is_said_before_anything_long_and_nothing_is_written(road: Road, tmp_path: Path) -> None:
    empty, new = tmp_path / "empty", tmp_path / "new"
    empty.mkdir()
    for weights, pictures, out, k, message in (
        (empty, road.pictures, new, 3, r"empty: not a weights folder"),
        (road.weights, tmp_path / "none", new, 3, r"none: no such folder of pictures"),
        (road.weights, empty, new, 3, r"empty: none of its 0 files \*.bmp, \*.gif, .* is a picture to find"),
        (road.weights, road.pictures, road.pictures, 3, r"pictures: is there already and holds no releases"),
        (road.weights, road.pictures, tmp_path / "项目", 3, r"项目: Triton .* ASCII paths alone"),
        (road.weights, road.pictures, new, 0, r"--top-k 0: 1 to 100"),
    ):
        with pytest.raises(ValueError, match=message):
            gallery.make_gallery(weights, {"pictures": pictures}, out, k)
    assert list(tmp_path.iterdir()) == [empty]


def test_only_pictures_that_the_served_model_takes_can_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    from clip_core.serve import triton_models

    assert gallery.MAX_BYTES == triton_models.MAX_IMAGE_BYTES
    assert gallery.MAX_PIXELS == triton_models.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("ask", [encode_texts, search])
def test_one_text_is_refused_where_a_list_is_wanted(ask: Callable) -> None:
    with pytest.raises(TypeError, match=r"a list of texts is wanted, not one text: .'一只猫'"):
        ask(None, "一只猫")  # before any server is asked


@pytest.mark.slow
def test_other_pictures_of_the_same_weights_are_another_release_and_one_may_hold_several_galleries(
    road: Road, tmp_path: Path
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for name, picture in list(PICTURES.items())[:4]:
        (others / Path(name).name).write_bytes(picture)
    first = releases.current(road.out)
    second, _ = gallery.make_gallery(road.weights, {"all": road.pictures, "some": others}, road.out, 3)
    assert second != first
    assert releases.added(road.out) == [second, first]
    assert releases.current(road.out) == first  # until it is rolled out
    roll_out(road.out, second)
    with serving(tmp_path, "--serving", str(road.out), "--no-browser") as (url, _):
        found = {name: ask(url, TEXTS[0], 3, name) for name in ("all", "some")}
        assert {answer["release"] for answer in found.values()} == {second}
        assert {hit["image_id"] for hit in found["some"]["hits"]} <= {Path(name).name for name in PICTURES}
        assert {hit["image_id"] for hit in found["all"]["hits"]} <= set(PICTURES)
        for answer in found.values():
            for hit in answer["hits"]:
                with urllib.request.urlopen(f"{url}{hit['image']}") as picture:
                    assert picture.read()
    roll_back(road.out)
    assert releases.current(road.out) == first


def test_a_gallery_is_named_after_its_folder_or_as_one_says(tmp_path: Path) -> None:
    (tmp_path / "Summer").mkdir()
    assert gallery.named([f"{tmp_path}/Summer", f"winter={tmp_path}"]) == {
        "summer": tmp_path / "Summer",
        "winter": tmp_path,
    }
    with pytest.raises(ValueError, match=r"图片: a gallery's name has small letters.*write NAME="):
        gallery.named(["图片"])
    with pytest.raises(ValueError, match="is there twice"):
        gallery.named(["a=x", "a=y"])
