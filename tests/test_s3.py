"""Data on an S3-compatible server: pairs come from there, and DVC's remote lies there."""

import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

from clip_core.recipe import apply_recipes
from clip_core.train.fingerprint import hash_of_input
from tests.conftest import ENVIRONMENT, new_project, run_in
from tests.s3_server import KEY, SECRET, s3_server
from tests.test_own_data import write_pairs
from tests.watched import counts_of


@pytest.fixture
def server(tmp_path: Path) -> Generator[str]:
    """The address of a server whose buckets are the folders in tmp_path/s3."""
    (tmp_path / "s3" / "remote").mkdir(parents=True)
    with s3_server(tmp_path / "s3") as address:
        yield address


def test_pairs_come_from_the_server_and_what_is_made_of_them_goes_there_and_comes_back(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setitem(ENVIRONMENT, "AWS_SECRET_ACCESS_KEY", SECRET)
    write_pairs(tmp_path / "s3" / "pairs")
    project = new_project(tmp_path / "project")
    for name, bucket in (("pairs", "pairs"), ("results", "remote")):
        run_in(project, "dvc", "remote", "add", name, f"s3://{bucket}")
        run_in(project, "dvc", "remote", "modify", name, "endpointurl", server)
    run_in(project, "dvc", "import-url", "remote://pairs", "my_pairs")
    apply_recipes([project / "recipes" / "table.yaml"], project / "params.yaml")
    run_in(project, "dvc", "repro", "pack")
    made = counts_of(project)
    run_in(project, "dvc", "push", "--remote", "results", "pack", "ingest")

    elsewhere = new_project(tmp_path / "elsewhere")
    for name in ("params.yaml", "dvc.lock", ".dvc/config"):
        shutil.copy(project / name, elsewhere / name)
    run_in(elsewhere, "dvc", "pull", "--remote", "results", "pack", "ingest")
    assert counts_of(elsewhere, "raw", "packed") == {name: made[name] for name in ("raw", "packed")}
    assert hash_of_input(elsewhere / "data" / "packed" / "train") == hash_of_input(
        project / "data" / "packed" / "train"
    )
