"""Deploy: a release is published only when a real Triton gives torch's answers and the offline recall."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from clip_core.serve.deploy import compare_recall, prove
from clip_core.serve.golden import WrongAnswers, is_ranked_so, make_golden, read_golden
from clip_core.serve.queries import Found
from clip_core.serve.triton import shared_memory
from clip_core.serve.truth import Truth
from tests.tiny_release import Release, processes_that_name


def test_a_release_is_proved_and_nothing_is_left(release: Release, tmp_path: Path) -> None:
    ours = f"clip-{os.getpid()}-"
    before = shared_memory(ours)
    report = prove(release.repository, tmp_path / "live", release.golden, release.truth, num_timed=5)
    assert report["release"] == release.truth.release
    assert max(report["golden_max_difference"].values()) <= 1e-4
    for k in (1, 5, 10):
        recall = report["recall"][f"text_to_image_recall@{k}"]
        assert abs(recall["served"] - recall["offline"]) <= recall["level_queries"] / len(release.truth.texts)
    for times in report["latency_ms"].values():
        assert 0 < times["p50"] <= times["p99"]
    assert not processes_that_name(str(tmp_path))
    assert shared_memory(ours) == before
    assert list(tmp_path.iterdir()) == []


def test_a_release_with_the_answers_of_another_is_refused(
    tiny_releases: tuple[Release, Release], tmp_path: Path
) -> None:
    first, second = tiny_releases
    live = tmp_path / "live"
    folder = tmp_path / "repository"
    folder.mkdir()
    from clip_core.serve.model_repository import assemble

    # The weights of the second under the name of the first: it loads, and answers wrongly.
    onnx = tmp_path / "onnx"
    onnx.mkdir()
    for file in second.onnx.iterdir():
        (onnx / file.name).write_bytes(file.read_bytes())
    (onnx / "release.txt").write_text(first.truth.release)
    assemble(onnx, first.index, first.golden, 10, folder)
    with pytest.raises(WrongAnswers, match=r"(?s)text_features differ by .*image_features differ by"):
        prove(folder, live, first.golden, first.truth, num_timed=5)
    assert not processes_that_name(str(live))


def test_recall_that_is_not_the_offline_one_is_refused() -> None:
    found = [["a", "b"], ["b", "a"], ["c", "a"]]
    assert compare_recall(found, toy_truth(offline=1.0)) == {
        "text_to_image_recall@1": {"served": 1.0, "offline": 1.0, "level_queries": 0}
    }
    with pytest.raises(ValueError, match="recall@1 through gRPC is not the offline one"):
        compare_recall(found, toy_truth(offline=0.5))
    with pytest.raises(ValueError, match=r"not the offline one(?s:.*)three"):
        compare_recall([["a", "b"], ["b", "a"], ["a", "c"]], toy_truth(offline=2 / 3))


def test_a_query_with_level_pictures_may_go_either_way() -> None:
    truth = toy_truth(offline=2 / 3, level=True)
    for last in (["c", "d"], ["d", "c"]):
        assert compare_recall([["a", "b"], ["b", "a"], last], truth)["text_to_image_recall@1"]["level_queries"] == 1


def toy_truth(offline: float, level: bool = False) -> Truth:
    """Three texts, each the same as one picture; the fourth picture is like the third if `level`."""
    features = np.eye(4, dtype=np.float32)
    images = features.copy()
    if level:
        images[3] = images[2]
    right = [np.array([0]), np.array([1]), np.array([2])]
    recall = {1: offline, 5: 1.0, 10: 1.0}
    return Truth("r", ["one", "two", "three"], features[:3], right, ["a", "b", "c", "d"], images, recall)


def test_golden_queries_travel_with_the_release(release: Release) -> None:
    golden = read_golden(release.repository / "clip_search" / "golden")
    assert golden.texts == release.golden.texts
    assert golden.images == release.golden.images
    assert golden.rankings == release.golden.rankings
    np.testing.assert_array_equal(golden.text_features, release.golden.text_features)
    assert {image[:3] for image in golden.images} == {b"\x89PN", b"\xff\xd8\xff"}  # PNG and JPEG


def test_golden_answers_are_torchs(release: Release) -> None:
    golden = release.golden
    for features, ranking in zip(golden.text_features, golden.rankings, strict=True):
        scores = release.truth.image_features @ features
        best = [release.truth.image_ids[place] for place in np.argsort(-scores)[:10]]
        assert set(best) <= set(ranking)
        assert is_ranked_so(Found(best, np.sort(scores)[::-1][:10], "r"), ranking, 1e-6)
        assert not is_ranked_so(Found(best[::-1], scores, "r"), ranking, 1e-6)
        assert not is_ranked_so(Found([best[0]] * 10, scores, "r"), ranking, 1.0)


def test_more_golden_queries_than_test_data_are_all_of_it(release: Release) -> None:
    from clip_core.config.deploy import Deploy
    from clip_core.inference.predictor import load

    params = Deploy(num_golden=1000, num_timed=1, max_feature_difference=1e-4)
    golden = make_golden(release.truth, load(release.model), release.store, params, 10)
    assert len(golden.texts) == len(release.truth.texts)
    assert len(golden.images) == len(release.store)


def test_the_pipelines_release_answers_with_the_offline_recall(smoke_project: Path) -> None:
    report = json.loads((smoke_project / "reports" / "deploy.json").read_text())
    offline = json.loads((smoke_project / "reports" / "test" / "metrics.json").read_text())["all"]
    assert report["release"] == (smoke_project / "models" / "onnx" / "release.txt").read_text().strip()
    for k in (1, 5, 10):
        recall = report["recall"][f"text_to_image_recall@{k}"]
        assert recall["offline"] == offline[f"text_to_image_recall@{k}"]["value"]
        assert abs(recall["served"] - recall["offline"]) <= recall["level_queries"] / offline["num_queries"] + 1e-9
    assert not (smoke_project / "serving" / "live" / "deploy").exists()
    assert not processes_that_name(str(smoke_project))
