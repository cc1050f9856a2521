"""Pictures come and go: each change is a release of links and a delta, which finds what a new one would find."""

import json
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pandas as pd
import pytest

from clip_core.config.index import Index
from clip_core.data.store import Store, StoreWriter, open_store
from clip_core.errors import UserError
from clip_core.inference.nearest import top_k
from clip_core.inference.onnx_predictor import OnnxTowers
from clip_core.inference.predictor import load
from clip_core.serve import change, lineage, releases
from clip_core.serve.approximate import FILE, Approximate, Kind, build
from clip_core.serve.assemble import Gallery, assemble
from clip_core.serve.gallery import TRITON
from clip_core.serve.index import build_index, read_index, read_metadata, recall_of
from clip_core.serve.pictures import INDEXES
from clip_core.serve.release import read_manifest, seal, verify
from clip_core.serve.rollout import roll_out
from tests.conftest import ENVIRONMENT, ROOT
from tests.served import of, serving
from tests.tiny import picture
from tests.tiny_release import TOP_K, Release
from tests.under_load import Clients

REMOVED = ("a-red-circle", "b-blue-square", "c-black-circle")
ADDED = {f"later/{colour}.png": picture(colour, "circle", "b") for colour in ("orange", "pink", "brown")}
EXACT = Index(kind="exact", top_k=TOP_K, min_recall=1.0, metadata=("family", "source"))
CSV = "image_id,caption,family,source\n" + "".join(f"{name},{name[6:-4]} 圆形,later,later\n" for name in ADDED)


class Made(NamedTuple):
    serving: Path
    before: str
    after: str
    encoded: list[int]  # pictures at a time


def write_change(folder: Path) -> list[str]:
    """The command's arguments that remove REMOVED and add ADDED, described by CSV."""
    (folder / "new" / "later").mkdir(parents=True)
    for name, data in ADDED.items():
        (folder / "new" / name).write_bytes(data)
    (folder / "described.csv").write_text(CSV, encoding="utf-8")
    (folder / "ids.txt").write_text("\n".join(REMOVED) + "\n", encoding="utf-8")
    given = {"--add": "new", "--described": "described.csv", "--remove": "ids.txt"}
    return [word for option, name in given.items() for word in (option, str(folder / name))]


def call(serving: Path, *arguments: str, gallery: str = "test", share: str = "0.5") -> str:
    """Runs the command in this process; the id of the release that it has added."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["change", gallery, *arguments, "--serving", str(serving), "--max-delta", share])
        change.main()
    return releases.added(serving)[0]


@contextmanager
def counted() -> Generator[list[int]]:
    """How many pictures the image tower is given, each time."""
    numbers: list[int] = []
    encode = OnnxTowers.encode_images

    def count(towers: OnnxTowers, pixels: np.ndarray) -> np.ndarray:
        numbers.append(len(pixels))
        return encode(towers, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxTowers, "encode_images", count)
        yield numbers


@pytest.fixture(scope="module")
def made(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A folder of releases with the tiny one and, by the command, that with other pictures. Read only."""
    folder = tmp_path_factory.mktemp("change")
    releases.add(folder / "serving", release.folder, keep=None)
    (folder / "serving" / lineage.FOLDER).mkdir()
    (folder / "serving" / lineage.FOLDER / f"{release.id}.json").write_text('{"made": {"data": "0"}}')
    with counted() as encoded:
        after = call(folder / "serving", *write_change(folder))
    return Made(folder / "serving", release.id, after, encoded)


def index_of(made: Made, release: str) -> Path:
    return releases.folder_of(made.serving, release) / INDEXES / "test"


def anew(base: Store, folder: Path) -> Store:
    """A store of the pictures that are there after the change, as if they always were."""
    pictures = {name: base.image_bytes(place) for place, name in enumerate(base.image_ids) if name not in REMOVED}
    table = base.pairs[~base.pairs.image_id.isin(REMOVED)]
    rows = [
        table.iloc[0].to_dict()
        | {"pair_id": name, "image_id": name, "image_sha256": sha256(data).hexdigest()}
        | {"family": "later", "source": "later"}
        for name, data in ADDED.items()
    ]
    writer = StoreWriter(folder, 2**20)
    for name, data in sorted((pictures | ADDED).items()):
        writer.add(name, data)
    writer.finish(pd.concat([table, pd.DataFrame(rows)], ignore_index=True))
    return open_store(folder)


def assert_finds_the_same(changed: Path, other: Path, queries: np.ndarray) -> None:
    """The same pictures with the same scores and metadata, in two indexes of which each has an order of its own."""
    one, two = read_index(changed), read_index(other)
    assert sorted(one.image_ids) == sorted(two.image_ids)
    (places, scores), (true_places, true_scores) = (index.top_k(queries, 20) for index in (one, two))
    np.testing.assert_allclose(scores, true_scores, atol=1e-6)
    for row, true_row, values in zip(places, true_places, true_scores, strict=True):
        found, true = [one.image_ids[place] for place in row], [two.image_ids[place] for place in true_row]
        levels = np.cumsum(np.diff(values, prepend=values[0]) < -2e-6)  # equal ones come in any order
        for level in range(levels[-1]):  # the last may go on beyond the twentieth
            assert {found[i] for i in np.flatnonzero(levels == level)} == {
                true[i] for i in np.flatnonzero(levels == level)
            }
    said = [
        {
            (name, column, value)
            for column, values in read_metadata(folder).items()
            for name, value in zip(index.image_ids, values, strict=True)
        }
        for folder, index in ((changed, one), (other, two))
    ]
    assert said[0] == said[1]


def test_a_changed_release_finds_what_one_made_anew_finds(made: Made, release: Release, tmp_path: Path) -> None:
    store = anew(release.store, tmp_path / "store")
    build_index(release.onnx, store, list(release.truth.texts), EXACT, tmp_path / "index")
    queries = np.concatenate([release.truth.text_features, release.truth.image_features])
    assert_finds_the_same(index_of(made, made.after), tmp_path / "index", queries)


def test_what_is_as_before_is_a_link_and_only_new_pictures_are_encoded(made: Made) -> None:
    assert made.encoded == [len(ADDED)]
    folder, base = (releases.folder_of(made.serving, one) for one in (made.after, made.before))
    verify(folder)
    links = {
        name
        for name in read_manifest(base).files
        if (folder / name).exists() and (folder / name).stat().st_ino == (base / name).stat().st_ino
    }
    others = set(read_manifest(folder).files) - links
    assert {name for name in others if not name.startswith("golden/") and Path(name).name != "release.txt"} == {
        *(
            f"{INDEXES}/test/{name}"
            for name in ("features.npy", "image_ids.json", "index.json", "kept.npy", "metadata.json")
        ),
        *(
            f"galleries/test/{name}"
            for name in ("manifest.json", "delta-images.parquet", "delta-pairs.parquet", "delta-images-00000.lmdb")
        ),
    }
    assert "models/image_core/1/model.onnx" in links and "galleries/test/images-00000.lmdb" in links
    assert lineage.of(made.serving, made.after)["changed_from"] == made.before


def test_a_delta_that_has_grown_is_merged_into_a_new_base_and_nothing_is_encoded(
    made: Made, release: Release, tmp_path: Path
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("later/pink.png\n")
    with counted() as encoded:
        merged = call(made.serving, "--release", made.after, "--remove", str(ids), share="0.1")
    assert encoded == []
    store, index = open_store(releases.folder_of(made.serving, merged) / "galleries" / "test"), index_of(made, merged)
    assert len(store.manifest["shards"]) == 1
    assert store.image_ids == read_index(index).image_ids == sorted(store.image_ids)
    assert set(store.image_ids) == set(release.store.image_ids) - set(REMOVED) | ADDED.keys() - {"later/pink.png"}
    assert not (index / "kept.npy").exists()
    before, after = read_index(index_of(made, made.after)), read_index(index)
    rows = [before.image_ids.index(image_id) for image_id in after.image_ids]
    np.testing.assert_array_equal(after.features, before.features[rows])


def test_an_approximate_index_is_linked_and_finds_what_came_but_not_what_went(release: Release, tmp_path: Path) -> None:
    params = EXACT.model_copy(update={"kind": "hnsw", "min_recall": 0.9})
    texts, base = list(release.truth.texts), tmp_path / "release"
    build_index(release.onnx, release.store, texts, params, tmp_path / "index")
    base.mkdir()
    galleries = {"test": Gallery(release.store.folder, tmp_path / "index")}
    before = assemble(release.onnx, galleries, release.golden, TOP_K, TRITON, base)
    seal(base, release.truth.weights_id, ("test",))
    releases.add(tmp_path / "serving", base, keep=None)
    made = Made(tmp_path / "serving", before, call(tmp_path / "serving", *write_change(tmp_path)), [])
    assert (index_of(made, made.after) / FILE).stat().st_ino == (index_of(made, before) / FILE).stat().st_ino
    build_index(release.onnx, anew(release.store, tmp_path / "store"), texts, params, tmp_path / "anew")
    assert_finds_the_same(index_of(made, made.after), tmp_path / "anew", release.truth.text_features)


@pytest.mark.parametrize("kind", ["hnsw", pytest.param("ivf_pq", marks=pytest.mark.slow)])
def test_an_index_with_a_delta_finds_nearly_all_of_the_true_top_ten(kind: Kind, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    centres = draw.normal(size=(200, 64))
    rows = centres[draw.integers(200, size=2200)] + 0.5 * draw.normal(size=(2200, 64))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    build(kind, rows[:2000], tmp_path / "index")
    queries = rows[[*range(50), *range(2000, 2050)]]
    kept = np.ones(2000, dtype=bool)
    kept[top_k(rows[:2000], queries[:5], 20)[0].ravel()] = False  # all that these five have found
    kept[draw.choice(2000, 100, replace=False)] = False
    features = np.concatenate([rows[:2000][kept], rows[2000:]])
    places, scores = Approximate(tmp_path / "index", features, kept).top_k(queries, 10)
    assert recall_of(features, queries, places) >= 0.95
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ features.T, places, axis=1), atol=1e-6)
    assert all(len({*row}) == 10 for row in places.tolist())
    assert (places[50:, 0] >= kept.sum()).all()  # who came later is nearest to itself


@pytest.mark.parametrize(
    ("ids", "names", "csv", "said"),
    [
        (["a-red-square", "nobody", "none"], [], "", r"picture 'nobody' to remove is not in the gallery \(2 such\)"),
        ([], ["a-red-circle.png", "later/pink.png"], "", r"picture 'later/pink.png' to add is in the gallery already"),
        ([], ["x.png"], "image_id,family\ny.png,red\n", r"picture 'y.png' is described, but not among those to add"),
        ([], ["x.png"], "image_id,colour\nx.png,red\n", r"columns image_id, colour; image_id is wanted and any of"),
        ([], ["x.png"], "image_id,family\nx.png,red\nx.png,red\n", r"'x.png' is described twice"),
        ([], [], "", "nothing to change: no picture to add is named, and none to remove"),
    ],
)
def test_a_change_that_can_not_be_meant_is_refused_and_nothing_is_added(
    ids: list[str],
    names: list[str],
    csv: str,
    said: str,
    made: Made,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in names:
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / name).write_bytes(ADDED["later/pink.png"])
    (tmp_path / "ids").write_text("\n".join(ids))
    (tmp_path / "csv").write_text(csv)
    before = releases.added(made.serving)
    given = ["--remove", str(tmp_path / "ids"), *(["--add", str(tmp_path / "new")] if names else [])]
    given += ["--described", str(tmp_path / "csv")] if csv else []
    with pytest.raises(SystemExit, match="2"):
        call(made.serving, "--release", made.after, *given)
    assert re.search(said, capsys.readouterr().err)
    assert releases.added(made.serving) == before


def test_a_gallery_that_is_not_there_and_one_that_would_be_empty_are_refused(
    made: Made, release: Release, tmp_path: Path
) -> None:
    wanted = change.Wanted(None, {}, release.store.image_ids)
    with pytest.raises(UserError, match="test: no picture would be left"):
        change.change(made.serving, made.before, "test", wanted, 0.1, None)
    with pytest.raises(UserError, match=f"release {made.before} has no gallery others; it has test"):
        change.change(made.serving, made.before, "others", wanted, 0.1, None)
    with pytest.raises(UserError, match="no release serves there"):
        change.change(tmp_path / "none", None, "test", wanted, 0.1, None)


def test_it_is_made_and_rolled_out_under_load_and_v1_honours_it_in_filters_pages_and_pictures(
    release: Release, tmp_path: Path
) -> None:
    added = load(release.model).encode_images(list(ADDED.values()))
    stays = [place for place, name in enumerate(release.store.image_ids) if name not in REMOVED]
    image_ids = [*(release.store.image_ids[place] for place in stays), *ADDED]
    truth = release.truth._replace(
        image_ids=image_ids, image_features=np.concatenate([release.truth.image_features[stays], added])
    )
    with serving(tmp_path, *of(tmp_path / "serving", release), "--no-browser") as (url, _):
        server = releases.running_server(tmp_path / "serving")
        assert server is not None
        with Clients(server, (release,)) as clients:
            command = [sys.executable, "-m", "clip_core.serve.change", "test", *write_change(tmp_path)]
            command += ["--serving", str(tmp_path / "serving"), "--max-delta", "0.5"]
            said = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True)
            assert said.returncode == 0, said.stderr
            assert "3 pictures added, 3 removed\n" in said.stdout and "is proved; `make rollout`" in said.stdout
            after = releases.added(tmp_path / "serving")[0]
            scores = truth.image_features @ truth.text_features[truth.texts.index(clients.text)]
            clients.true_scores[after] = dict(zip(image_ids, scores.tolist(), strict=True))
            roll_out(tmp_path / "serving", after)
        assert (clients.failed, clients.mixed) == ([], [])
        assert (clients.answers[0], clients.answers[-1]) == (release.id, after)
        with httpx.Client(base_url=url, trust_env=False) as api:
            found = pages(api, text=clients.text)
            assert [hit["score"] for hit in found] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=2e-4)
            assert {hit["image_id"] for hit in found} == set(image_ids)
            later = pages(api, text=clients.text, filter={"family": "later"})
            assert {hit["image_id"] for hit in later} == set(ADDED)
            assert {hit["name"] for hit in later} == {f"{name[6:-4]} 圆形" for name in ADDED}
            assert {hit["image_id"] for hit in pages(api, text="红色", filter={"family": "red"})} == {
                name for name in image_ids if "-red-" in name
            }
            for hit in later:
                assert api.get(hit["image"]).content == ADDED[hit["image_id"]]
            assert api.get(f"/images/{after}/test/{REMOVED[0]}").status_code == 404


def pages(api: httpx.Client, **question: object) -> list[dict]:
    """The hits of all pages."""
    found, offset = [], 0
    while offset is not None:
        answer = json.loads(api.post("/v1/search", json={**question, "limit": 7, "offset": offset}).text)
        found, offset = found + answer["hits"], answer["next_offset"]
    return found
