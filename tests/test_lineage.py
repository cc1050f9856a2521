"""Lineage: from a release back to what it was made of, and from a picture, a caption or a source to the releases."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from clip_core.data.tombstones import tombstones_for
from clip_core.errors import UserError
from clip_core.project import SERVING
from clip_core.serve import lineage, releases
from clip_core.serve.release import read_manifest
from tests.conftest import commit_all, copy_of, run_in


def told(project: Path, *arguments: str) -> str:
    return run_in(project, sys.executable, "-m", "flows.lineage", *arguments).stdout


@pytest.fixture(scope="module")
def project(smoke_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished smoke project with its release added."""
    copy = copy_of(smoke_project, tmp_path_factory.mktemp("lineage"))
    run_in(copy, sys.executable, "-m", "clip_core.serve.releases", "add", "models/release")
    return copy


def test_a_release_leads_back_to_its_commit_its_stages_and_its_sources_with_their_licences(project: Path) -> None:
    (release,) = releases.added(project / SERVING)
    output = told(project, release)
    commit = run_in(project, "git", "rev-parse", "--short=12", "HEAD").stdout.strip()
    assert f"with commit {commit}" in output
    assert f"weights {read_manifest(project / 'models' / 'release').weights}, by stage2" in output
    lock = (project / "dvc.lock").read_text()
    for path in (".cache/emoji", "data/packed", "models/release"):
        (digest,) = set(re.findall(rf"[<>] {re.escape(path)}  (\S+)", output))
        assert digest in lock
    assert re.search(r"emoji/noto: [\d,]+ pairs Apache-2\.0", output)


def test_a_release_that_is_added_again_still_comes_from_where_it_came_from(project: Path) -> None:
    (release,) = releases.added(project / SERVING)
    before = lineage.of(project / SERVING, release)
    assert before["stages"]["stage2"]["params"]["params.yaml"]["stage2"]["global_batch"] > 0
    (project / "note.txt").write_text("the project goes on")
    commit_all(project)
    run_in(project, sys.executable, "-m", "clip_core.serve.releases", "add", "models/release")
    assert lineage.of(project / SERVING, release) == before


def test_a_picture_a_caption_and_a_source_lead_to_the_releases_that_hold_them(project: Path) -> None:
    from clip_core.data.store import open_store

    (release,) = releases.added(project / SERVING)
    train, shown = (open_store(project / "data" / "packed" / split).pairs for split in ("train", "test"))
    row = train.iloc[0]
    num_of = {
        row.image_id: int((train.image_id == row.image_id).sum()),
        row.image_sha256: int((train.image_sha256 == row.image_sha256).sum()),
        row.caption: int((train.caption == row.caption).sum()),
        row.source: int((train.source == row.source).sum()),
    }
    for wanted, number in num_of.items():
        assert f"{release}  serves   trained on {number} pairs, shows" in told(project, "--holds", wanted)
    assert f"{release}  serves   trained on 0 pairs, shows 1 pictures" in told(
        project, "--holds", shown.image_id.iloc[0]
    )
    assert "trained on 0 pairs, shows 0 pictures" in told(project, "--holds", "没有人写过这句话")


def test_what_a_model_has_seen_is_known_when_its_data_and_the_release_are_gone(project: Path, tmp_path: Path) -> None:
    serving = tmp_path / "serving"
    shutil.copytree(project / SERVING / "lineage", serving / "lineage")
    (found,) = lineage.holding(serving, tombstones_for("emoji"), folders={})
    assert found.num_trained and found.num_found == 0


def test_a_release_of_which_nothing_is_known_is_named_with_those_of_which_something_is(project: Path) -> None:
    (release,) = releases.added(project / SERVING)
    with pytest.raises(UserError, match=rf"nothing is known of release 0123.*: {release}"):
        lineage.of(project / SERVING, "0123")
