"""The folder of releases: a proved one is never lost, the one that serves never removed, half of one never there."""

import shutil
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest

from clip_core.serve import releases
from clip_core.serve.release import MANIFEST, id_of, sums_of, verify
from tests.conftest import ENVIRONMENT, ROOT
from tests.tiny_release import Release
from tests.under_load import changed


@pytest.fixture
def serving(tmp_path: Path) -> Path:
    return tmp_path / "serving"


def variants(release: Release, folder: Path, num: int) -> list[Release]:
    """Releases that differ in a golden text, by which nobody is served."""

    def edit(number: int):
        return lambda made: (made / "golden" / f"note-{number}").write_text(str(number))

    return [changed(release, folder / f"variant-{number}", edit(number)) for number in range(num)]


def events(serving: Path) -> list[tuple[str, str]]:
    return [(event.event, event.release) for event in releases.history(serving)]


def inodes(folder: Path) -> set[int]:
    return {path.stat().st_ino for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST}


def test_the_first_release_becomes_current_and_a_later_one_does_not(
    serving: Path, tiny_releases: tuple[Release, Release]
) -> None:
    first, second = tiny_releases
    for release in tiny_releases:
        releases.add(serving, release.folder, keep=5)
    assert releases.current(serving) == first.id
    assert (serving / "current" / MANIFEST).exists()  # a link that leads there
    assert releases.added(serving) == [second.id, first.id]
    assert events(serving) == [("added", first.id), ("serves", first.id), ("added", second.id)]
    assert "`make rollout` makes it public" in releases.announcement(serving, second.id)
    assert releases.announcement(serving, first.id).startswith(f"release {first.id} serves")


def test_a_release_is_added_by_links_and_again_without_a_trace(serving: Path, release: Release) -> None:
    releases.add(serving, release.folder, keep=5)
    place = releases.folder_of(serving, release.id)
    assert inodes(place) == inodes(release.folder)
    before = (serving / "history.jsonl").stat(), place.stat()
    releases.add(serving, release.folder, keep=5)
    assert ((serving / "history.jsonl").stat(), place.stat()) == before
    assert verify(place).release == release.id


def test_every_file_that_was_proved_is_added(serving: Path, release: Release, tmp_path: Path) -> None:
    made = changed(release, tmp_path / "made", lambda folder: (folder / "calibration.json").write_text("{}"))
    releases.add(serving, made.folder, keep=5)
    assert inodes(releases.folder_of(serving, made.id)) == inodes(made.folder)
    verify(releases.folder_of(serving, made.id))


def test_a_folder_that_was_deleted_or_damaged_is_added_anew_and_what_is_current_stays(
    serving: Path, tiny_releases: tuple[Release, Release]
) -> None:
    first, second = tiny_releases
    for release in tiny_releases:
        releases.add(serving, release.folder, keep=5)
    releases.make_current(serving, second.id, "for the test")
    shutil.rmtree(releases.folder_of(serving, first.id))
    (releases.folder_of(serving, second.id) / "models/text_core/1/model.onnx").unlink()
    for release in tiny_releases:
        releases.add(serving, release.folder, keep=5)
        verify(releases.folder_of(serving, release.id))
    assert releases.current(serving) == second.id


def test_a_release_that_is_made_again_after_another_is_the_newest_again(
    serving: Path, tiny_releases: tuple[Release, Release]
) -> None:
    first, second = tiny_releases
    for release in (first, second, first):
        releases.add(serving, release.folder, keep=5)
    assert releases.added(serving) == [first.id, second.id]


def test_a_release_that_was_linked_but_not_written_down_is_not_lost(serving: Path, release: Release) -> None:
    releases.add(serving, release.folder, keep=5)
    for name in ("history.jsonl", "current"):  # killed before it came to these
        (serving / name).unlink()
    assert releases.added(serving) == []
    releases.add(serving, release.folder, keep=5)
    assert releases.added(serving) == [release.id]
    assert releases.current(serving) == release.id


def test_the_release_lasts_when_what_it_was_made_of_is_removed_as_dvc_does(
    serving: Path, release: Release, tmp_path: Path
) -> None:
    made = tmp_path / "models" / "release"
    shutil.copytree(release.folder, made)
    releases.add(serving, made, keep=5)
    shutil.rmtree(made)
    assert verify(releases.folder_of(serving, release.id)).release == release.id


def test_only_what_was_proved_is_added(serving: Path, release: Release, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(release.folder, copy)
    (copy / "golden" / "golden.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not the release .* that was proved: missing, new or changed: golden/golden"):
        releases.add(serving, copy, keep=5)
    (copy / MANIFEST).unlink()
    with pytest.raises(ValueError, match=f"copy: no release: it has no {MANIFEST}. `make run` makes one"):
        releases.add(serving, copy, keep=5)
    (copy / MANIFEST).write_text('{"release": "../../etc"}')
    with pytest.raises(ValueError, match=r"manifest\.json: not the manifest of a release"):
        releases.add(serving, copy, keep=5)
    assert releases.added(serving) == []
    assert releases.current(serving) is None


@pytest.mark.parametrize("part", ["weights", "tokenizer", "preprocessing", "index", "gallery", "serving code"])
def test_the_id_is_of_all_that_decides_what_is_served(part: str, release: Release) -> None:
    names = {
        "weights": "models/text_core/1/model.onnx",
        "tokenizer": "models/text_preprocess/1/tokenizer.json",
        "preprocessing": "models/image_preprocess/1/model.json",
        "index": "models/clip_search/1/galleries/test/features.npy",
        "gallery": "galleries/test/images-00000.lmdb",
        "serving code": "models/clip_search/1/code/clip_core/serve/index.py",
    }
    sums = sums_of(release.folder)
    assert id_of(sums) == release.id
    assert names[part] in sums
    assert id_of(sums | {names[part]: "0" * 64}) != release.id


def test_housekeeping_never_removes_what_serves_or_what_one_can_roll_back_to(
    serving: Path, release: Release, tmp_path: Path
) -> None:
    made = variants(release, tmp_path, 6)
    first, second, *others = (one.id for one in made)
    for one in made[:2]:
        releases.add(serving, one.folder, keep=None)
    releases.make_current(serving, second, "for the test")
    for one in made[2:]:
        releases.add(serving, one.folder, keep=2)
    assert releases.added(serving) == [others[3], others[2], second, first]
    assert releases.have_served(serving) == [first]
    assert [release for event, release in events(serving) if event == "removed"] == others[:2]


def test_nothing_is_removed_while_a_rollout_is_at_work(serving: Path, release: Release, tmp_path: Path) -> None:
    made = variants(release, tmp_path, 4)
    with releases.only_rollout(serving):
        for one in made:
            releases.add(serving, one.folder, keep=1)
    assert len(releases.added(serving)) == 4


def test_lines_of_the_history_that_are_written_at_once_are_all_there(serving: Path) -> None:
    serving.mkdir()
    with get_context("spawn").Pool(4) as pool:
        numbers = pool.starmap(releases.record, [(serving, "begun", f"{number:016x}") for number in range(40)])
    assert sorted(numbers) == list(range(1, 41))
    assert len(set(events(serving))) == 40


def test_the_command_lists_what_is_there(serving: Path, tiny_releases: tuple[Release, Release]) -> None:
    for release in tiny_releases:
        releases.add(serving, release.folder, keep=5)
    command = [sys.executable, "-m", "clip_core.serve.releases", "--serving", str(serving)]
    listed = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    second, first = listed.splitlines()
    assert second.split()[0] == tiny_releases[1].id
    assert first.split()[0] == tiny_releases[0].id
    assert first.endswith("serves")
