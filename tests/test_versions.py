"""The model registry: what was accepted is a git tag that DVC finds, with a card of the facts; nothing else is."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from clip_core.data.store import open_store
from clip_core.errors import UserError
from clip_core.project import SERVING
from clip_core.serve import lineage, releases
from clip_core.serve.release import read_manifest
from flows import promote, registry
from tests.conftest import commit_all, copy_of, run_in


@pytest.fixture(scope="module")
def project(smoke_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished smoke project with its release added, as a person's git has it."""
    copy = copy_of(smoke_project, tmp_path_factory.mktemp("registry"))
    run_in(copy, sys.executable, "-m", "clip_core.serve.releases", "add", "models/release")
    for name, value in {"name": "test", "email": "test@localhost"}.items():
        run_in(copy, "git", "config", f"user.{name}", value)
    return copy


@pytest.fixture
def serving(project: Path, tmp_path: Path) -> Path:
    """What is known of its release, which has not been accepted yet."""
    shutil.copytree(project / SERVING / "lineage", tmp_path / "serving" / "lineage")
    for tag in registry.versions(project):
        run_in(project, "git", "tag", "-d", f"{registry.TAG}{tag}")
    return tmp_path / "serving"


def the_release(project: Path) -> str:
    return read_manifest(project / "models" / "release").release


def test_an_accepted_release_is_a_version_that_dvc_gets_by_its_number(
    project: Path, serving: Path, tmp_path: Path
) -> None:
    release = the_release(project)
    releases.record(serving, "promoted", release)
    assert registry.add(serving, project, release) == "v1.0.0"
    assert registry.versions(project) == {"v1.0.0": release}
    assert list(registry.listed(serving, project)) == [f"clip@v1.0.0  {release}  removed"]
    command = ("dvc", "artifacts", "get", str(project), "clip", "--rev", "v1.0.0", "--out", str(tmp_path / "got"))
    run_in(tmp_path, sys.executable, "-m", *command)
    assert read_manifest(tmp_path / "got").release == release


def test_a_version_has_params_data_weights_metrics_parity_licences_commit_and_date(
    project: Path, serving: Path
) -> None:
    release = the_release(project)
    releases.record(serving, "promoted", release)
    registry.add(serving, project, release)
    facts = json.loads((serving / "versions" / "v1.0.0" / "version.json").read_text())
    assert facts["weights"] == read_manifest(project / "models" / "release").weights
    assert facts["stages"]["stage2"]["params"]["params.yaml"]["stage2"]["global_batch"] > 0
    assert facts["stages"]["pack"]["outs"]["data/packed"] and facts["made"]["data"]
    measured = json.loads((project / "reports" / "test" / "metrics.json").read_text())
    assert facts["metrics"] == measured
    assert facts["proof"]["golden_max_difference"]["text_features"] < 1e-3
    assert set(facts["licences"]) == set(open_store(project / "data" / "packed" / "train").pairs.source)
    assert facts["tagged"] == run_in(project, "git", "rev-parse", "clip@v1.0.0^{commit}").stdout.strip()
    assert facts["registered"] >= facts["date"]


def test_the_card_is_one_that_hugging_face_reads_and_the_tag_holds_it_too(project: Path, serving: Path) -> None:
    release = the_release(project)
    releases.record(serving, "promoted", release)
    registry.add(serving, project, release)
    text = (serving / "versions" / "v1.0.0" / "README.md").read_text()
    assert registry.card_of(project, "v1.0.0") == text.strip()
    data = ModelCard(text).data.__dict__
    assert (data["language"], data["model_name"]) == (["zh"], "clip@v1.0.0")
    all_queries = json.loads((project / "reports" / "test" / "metrics.json").read_text())["all"]
    results = {(one.dataset_name, one.metric_type): one.metric_value for one in data["eval_results"]}
    assert results["test, all queries", "text_to_image_recall@1"] == all_queries["text_to_image_recall@1"]["value"]
    entry = {key: f"{100 * value:.1f}" for key, value in all_queries["mean_recall"].items()}
    row = f"| {entry['value']} | [{entry['low']}, {entry['high']}] | {entry['chance']} |"
    assert f"| all queries | mean_recall {row}" in text
    for heading in ("Intended use", "Training data", "Metrics", "Limits", "Licences"):
        assert f"\n## {heading}\n" in text
    for licences in lineage.of(serving, release)["licences"].values():
        assert all(f"| {licence} | {number:,} |" in text for licence, number in licences.items())


def test_a_release_of_which_little_is_known_has_a_card_that_says_so(project: Path, serving: Path) -> None:
    unknown = {"metrics": None, "proof": None, "licences": None, "commit": "unknown", "decision": None}
    text = registry.model_card(
        {"tag": "clip@v1.0.0", "registered": "now"} | lineage.of(serving, the_release(project)) | unknown
    )
    assert "model-index" not in ModelCard(text).data.to_dict()
    assert text.count("nknown") > 3 and "Their sources are unknown" in text


def test_a_release_that_was_not_accepted_is_no_version(project: Path, serving: Path) -> None:
    release = the_release(project)
    with pytest.raises(UserError, match=rf"{release} was not accepted; `python -m flows.promote"):
        registry.add(serving, project, release)
    releases.record(serving, "promoted", release)
    releases.record(serving, "refused", release)
    with pytest.raises(UserError, match="not accepted"):
        registry.add(serving, project, release)
    releases.record(serving, "serves", release)  # somebody rolled it out by its name
    assert registry.add(serving, project, release) == "v1.0.0"


def test_a_version_that_exists_stays_what_it_is(project: Path, serving: Path) -> None:
    release = the_release(project)
    releases.record(serving, "promoted", release)
    run_in(project, "git", "tag", "-a", "clip@v1.0.0", "-m", "release 0123456789abcdef")
    with pytest.raises(UserError, match=r"v1\.0\.0 is release 0123456789abcdef already"):
        registry.add(serving, project, release, "v1.0.0")
    with pytest.raises(UserError, match=r"version 7 is none; name another such as v2\.0\.0"):
        registry.add(serving, project, release, "7")
    assert registry.add(serving, project, release) == "v2.0.0"
    assert registry.add(serving, project, release) == "v2.0.0"  # once more is nothing
    assert registry.versions(project) == {"v1.0.0": "0123456789abcdef", "v2.0.0": release}


def test_a_run_that_nobody_committed_is_tagged_as_it_lies_there_and_the_project_does_not_notice(
    smoke_project: Path, serving: Path, tmp_path: Path
) -> None:
    project = copy_of(smoke_project, tmp_path)
    lock = (project / "dvc.lock").read_text()
    (project / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    commit_all(project)
    (project / "dvc.lock").write_text(lock)
    for name, value in {"name": "test", "email": "test@localhost"}.items():
        run_in(project, "git", "config", f"user.{name}", value)
    head, status = (run_in(project, "git", *what).stdout for what in (("rev-parse", "HEAD"), ("status", "--short")))
    release = the_release(project)
    releases.record(serving, "promoted", release)
    registry.add(serving, project, release)
    assert run_in(project, "git", "show", "clip@v1.0.0:dvc.lock").stdout.strip() == lock.strip()
    assert run_in(project, "git", "rev-parse", "clip@v1.0.0^{commit}^").stdout == head
    assert run_in(project, "git", "rev-parse", "HEAD").stdout == head
    assert run_in(project, "git", "status", "--short").stdout == status

    (project / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")  # the project went on
    run_in(project, "git", "tag", "-d", "clip@v1.0.0")
    with pytest.raises(UserError, match=r"neither dvc.lock nor that of commit .* names it; check out the commit"):
        registry.add(serving, project, release)


def test_without_git_the_message_says_what_is_missing_and_a_promotion_is_one_all_the_same(
    project: Path, serving: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for mark in ("params.yaml", "dvc.yaml"):
        (tmp_path / mark).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"not a git repository.*git init"):
        registry.versions(tmp_path)
    told = promote.register.fn(serving, the_release(project))
    assert told.startswith("no version was registered: ") and "git init" in told
