"""A deletion request: what it names is in no data, cache or release any more, and does not come back."""

import base64
import json
import os
import shutil
import sys
from contextlib import chdir
from hashlib import sha256
from pathlib import Path

import pytest

from clip_core.data.pairs import read_images, read_pairs, read_rejected
from clip_core.data.store import open_store
from clip_core.data.tombstones import FILE, REASON, add_tombstones, read_tombstones, tombstones_for
from clip_core.errors import UserError
from clip_core.project import SERVING
from clip_core.recipe import apply_recipes
from clip_core.serve import lineage, releases
from clip_core.serve.release import MANIFEST, STATES_ID, id_of, read_manifest, seal, sums_of
from clip_core.serve.rollout import roll_back, roll_out
from tests.conftest import ROOT, copy_of, run_in
from tests.small_raw import drawing, encoded
from tests.stage_calls import call
from tests.tiny_release import Release, a_serving


def ingested(folder: Path, params: Path) -> tuple[Path, Path]:
    """The folders of the data and of the quarantine that the stage makes with `folder`'s tombstones."""
    call("ingest", params, folder / "raw", folder / "refused", folder / FILE)
    return folder / "raw", folder / "refused"


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """Of a table of six pictures, of which two are the same, seven captions and a row that names no picture."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(6):
        (source / f"{number}.png").write_bytes(encoded(drawing(min(number, 4))))
    rows = [f"{number}.png,第{number}张" for number in range(6)] + ["0.png,一只猫", "none.png,一只猫"]
    (source / "pairs.csv").write_text("image,caption\n" + "\n".join(rows), encoding="utf-8")
    file = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", file)
    apply_recipes([ROOT / "recipes" / "table.yaml"], file)
    file.write_text(file.read_text().replace("path: my_pairs", f"path: {source}"))
    return file


def test_of_a_row_that_is_deleted_ingest_tells_the_reason_and_nothing_else(params: Path, tmp_path: Path) -> None:
    picture = encoded(drawing(4))
    add_tombstones(tmp_path / FILE, tombstones_for(sha256(picture).hexdigest(), ["image_sha256"]))
    add_tombstones(tmp_path / FILE, tombstones_for("一只猫", ["caption"]))
    raw, refused = ingested(tmp_path, params)
    counts = json.loads((raw / "counts.json").read_text())
    assert (counts["read"], counts["kept"], counts["by_reason"]) == (8, 4, {REASON: 4})
    assert read_pairs(raw).caption.tolist() == ["第0张", "第1张", "第2张", "第3张"]
    assert [image for _, image in read_images(raw)] == [encoded(drawing(number)) for number in range(4)]
    rows = read_rejected(refused)
    assert rows.reason.tolist() == [REASON] * 4
    assert rows.drop(columns="reason").replace({"": None, 0: None}).isna().all(axis=None)


def test_a_picture_goes_under_every_id_and_one_that_has_other_captions_stays(params: Path, tmp_path: Path) -> None:
    add_tombstones(tmp_path / FILE, tombstones_for("0.png", ["image_id"]) | tombstones_for("第1张", ["caption"]))
    raw, _ = ingested(tmp_path, params)
    assert [image_id for image_id, _ in read_images(raw)] == ["2.png", "3.png", "4.png", "5.png"]
    (tmp_path / FILE).write_text("")
    add_tombstones(tmp_path / FILE, tombstones_for("一只猫", ["caption"]))
    raw, _ = ingested(tmp_path, params)
    assert len(list(read_images(raw))) == 6
    assert json.loads((raw / "counts.json").read_text())["images"] == 6


def test_a_whole_source_goes_by_its_name(params: Path, tmp_path: Path) -> None:
    (name,) = set(read_pairs(ingested(tmp_path, params)[0]).source)
    add_tombstones(tmp_path / FILE, tombstones_for(name, ["source"]))
    with pytest.raises(UserError, match=r"not one of 8 rows makes a pair: .*deletion request"):
        ingested(tmp_path, params)


def test_without_deletion_requests_nothing_is_another_byte_or_made_again(params: Path, tmp_path: Path) -> None:
    from clip_core.all_params import load_params
    from clip_core.config.engine import Engine
    from clip_core.data.ingestion import ingest
    from clip_core.data.sources import parts_of

    data, engine = load_params(params).data, Engine(maps="local", processes=1, address=None)
    with chdir(tmp_path):
        results = [ingest(data, parts_of(data), engine, marks) for marks in (frozenset(), read_tombstones(ROOT / FILE))]
    assert results[0] == results[1]


def test_the_file_tells_nobody_what_was_deleted_and_a_request_made_twice_is_one_line(tmp_path: Path) -> None:
    for _ in range(2):
        add_tombstones(tmp_path / FILE, tombstones_for("张三的猫", ["caption"]))
    (line,) = (tmp_path / FILE).read_text(encoding="utf-8").splitlines()
    assert line.startswith(f"caption {sha256('张三的猫'.encode()).hexdigest()} 20")
    with (tmp_path / FILE).open("a", encoding="utf-8") as file:
        file.write("caption 张三的猫\n")
    with pytest.raises(UserError, match=r"tombstones.txt, line 2: 'caption 张三的猫' is no tombstone"):
        read_tombstones(tmp_path / FILE)


def test_a_release_that_shows_what_was_deleted_is_not_added_not_rolled_out_and_not_rolled_back_to(
    tiny_releases: tuple[Release, Release], tmp_path: Path
) -> None:
    first, second = tiny_releases
    serving = a_serving(tmp_path / "serving", first, second)
    roll_out(serving, second.id)
    picture = first.store.pairs.image_id.iloc[0]
    add_tombstones(serving / FILE, tombstones_for(picture, ["image_id"]))
    for change in (lambda: roll_out(serving, first.id), lambda: roll_back(serving)):
        with pytest.raises(UserError, match=rf"{first.id}: holds 1 pictures or captions that deletion requests name"):
            change()
    with pytest.raises(UserError, match=r"`python -m flows\.forget` does"):
        releases.add(serving, first.folder, keep=None)
    assert releases.current(serving) == second.id


def test_after_a_request_no_file_of_the_project_holds_the_picture_and_what_serves_is_without_it(
    smoke_project: Path, tmp_path: Path
) -> None:
    project = copy_of(smoke_project, tmp_path)
    (project / ".dvc" / "config.local").unlink()  # a cache of its own, since it will be emptied
    shutil.copytree(smoke_project / ".dvc" / "cache", project / ".dvc" / "cache", copy_function=os.link)
    serving = project / SERVING
    store = open_store(project / "data" / "packed" / "test")
    picture, image_id = store.image_bytes(5), store.image_ids[5]
    before = json.loads((project / "data" / "raw" / "counts.json").read_text())
    num_rows = int((read_pairs(project / "data" / "raw").image_id == image_id).sum())
    made = project / "models" / "release"
    old = sealed_with_a_note(made, tmp_path / "old")
    releases.add(serving, old, keep=None)
    run_in(project, sys.executable, "-m", "clip_core.serve.releases", "add", "models/release")
    roll_out(serving, None)
    shown = releases.added(serving)

    command = [sys.executable, "-m", "flows.forget", "picture", image_id]
    said = run_in(project, *command).stdout
    assert f"data/raw: {num_rows} rows are refused" in said and "nothing was changed" in said
    assert releases.added(serving) == shown and holders(project, picture)

    run_in(project, *command, "--yes")
    assert holders(project, picture) == []
    (release,) = releases.added(serving)
    assert releases.current(serving) == release and release not in shown
    after = json.loads((project / "data" / "raw" / "counts.json").read_text())
    assert after["read"] == before["read"] and after["rejected"] == before["rejected"] + num_rows
    assert after["by_reason"][REASON] == num_rows
    assert lineage.of(serving, release)["made"] == lineage.of(serving, shown[0])["made"]  # the same weights
    with pytest.raises(UserError, match="nothing to roll back to"):
        roll_back(serving)
    refused = run_in(project, sys.executable, "-m", "clip_core.serve.releases", "add", str(old), check=False)
    assert refused.returncode == 2 and "deletion requests name" in refused.stdout
    assert "stage1" in run_in(project, "dvc", "status", "dvc.yaml").stdout  # the next training is without it


def sealed_with_a_note(release: Path, folder: Path) -> Path:
    """Another release that serves the same."""
    shutil.copytree(release, folder)
    manifest = read_manifest(folder)
    (folder / MANIFEST).unlink()
    (folder / "golden" / "note").write_text("an older one")
    new = id_of(sums_of(folder))
    for file in folder.rglob(STATES_ID):
        file.write_text(f"{new}\n")
    seal(folder, manifest.weights, manifest.galleries)
    return folder


def holders(project: Path, picture: bytes) -> list[Path]:
    """The files that hold the picture's bytes, as they are or in base64, but for the source itself."""
    wanted = picture, base64.b64encode(picture)
    files = (file for file in project.rglob("*") if file.is_file() and project / ".cache" not in file.parents)
    return [file for file in files if any(bytes in file.read_bytes() for bytes in wanted)]


def test_what_nothing_holds_is_told_with_how_to_name_it(smoke_project: Path, tmp_path: Path) -> None:
    project = copy_of(smoke_project, tmp_path)
    refused = run_in(project, sys.executable, "-m", "flows.forget", "caption", "没有人写过这句话", "--yes", check=False)
    assert refused.returncode == 2
    assert "caption '没有人写过这句话': neither data/raw nor a release in serving holds it" in refused.stdout
    assert read_tombstones(project / FILE) == frozenset()
