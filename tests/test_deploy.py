"""Deploy: a release is published only when a real Triton gives torch's answers and the offline recall."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from clip_core.model.contract import weights_id
from clip_core.serve.deploy import compare_recall, prove
from clip_core.serve.golden import Seen, WrongAnswers, is_ranked_so, make_golden, read_golden
from clip_core.serve.queries import Found
from clip_core.serve.release import verify
from clip_core.serve.triton import shared_memory
from clip_core.serve.truth import Truth
from tests.tiny_release import Release, processes_that_name
from tests.under_load import changed


def test_a_release_is_proved_and_nothing_is_left(release: Release, tmp_path: Path) -> None:
    ours = f"clip-{os.getpid()}-"
    before = shared_memory(ours)
    report = prove(release.folder, release.id, release.truth, None, num_timed=5, log=tmp_path / "log")
    assert report["release"] == release.id
    assert max(report["golden_max_difference"].values()) <= 1e-4
    for k in (1, 5, 10):
        recall = report["recall"][f"text_to_image_recall@{k}"]
        assert abs(recall["served"] - recall["offline"]) <= recall["level_queries"] / len(release.truth.texts)
    for times in report["latency_ms"].values():
        assert 0 < times["p50"] <= times["p99"]
    assert not processes_that_name(str(tmp_path))
    assert shared_memory(ours) == before
    assert list(tmp_path.iterdir()) == []
    verify(release.folder)


def test_a_release_with_the_answers_of_another_is_refused(
    tiny_releases: tuple[Release, Release], tmp_path: Path
) -> None:
    first, second = tiny_releases

    def change(folder: Path) -> None:  # the weights of the second with the answers of the first: it loads
        for tower in ("text", "image"):
            file = folder / "models" / f"{tower}_core" / "1" / "model.onnx"
            file.unlink()
            shutil.copy(second.folder / file.relative_to(folder), file)

    wrong = changed(first, tmp_path / "wrong", change)
    with pytest.raises(WrongAnswers, match=r"(?s)text_features differ by .*image_features differ by"):
        prove(wrong.folder, wrong.id, first.truth, None, num_timed=5, log=tmp_path / "log")
    assert not processes_that_name(str(tmp_path))


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
    golden = read_golden(release.folder / "golden")
    assert golden.texts == release.golden.texts
    assert golden.images == release.golden.images
    assert golden.rankings == release.golden.rankings
    np.testing.assert_array_equal(golden.text_features, release.golden.text_features)
    assert {image[:3] for image in golden.images} == {b"\x89PN", b"\xff\xd8\xff"}  # PNG and JPEG


def test_golden_answers_are_torchs(release: Release) -> None:
    golden = release.golden
    asked = [*golden.text_features, *golden.image_features]
    for place, (features, ranking) in enumerate(zip(asked, golden.rankings["test"], strict=True)):
        scores = release.truth.image_features @ features
        best = [release.truth.image_ids[place] for place in np.argsort(-scores)[:10]]
        assert set(best) <= set(ranking)
        assert is_ranked_so(Found(best, np.sort(scores)[::-1][:10], "r"), ranking, 1e-6)
        if place < len(golden.text_features):  # to the random image tower all pictures are nearly one
            assert not is_ranked_so(Found(best[::-1], scores, "r"), ranking, 1e-6)
        assert not is_ranked_so(Found([best[0]] * 10, scores, "r"), ranking, 1.0)


def test_more_golden_queries_than_test_data_are_all_of_it(release: Release) -> None:
    from clip_core.config.deploy import Deploy
    from clip_core.inference.predictor import load
    from clip_core.serve.gallery import TRITON

    params = Deploy(num_golden=1000, num_timed=1, max_feature_difference=1e-4, triton=TRITON)
    seen = {"test": Seen(release.store, release.truth.image_features)}
    golden = make_golden(load(release.model), release.truth.texts, seen, params, 10)
    assert len(golden.texts) == len(release.truth.texts)
    assert len(golden.images) == len(release.store)


def test_the_pipelines_release_answers_with_the_offline_recall(smoke_project: Path) -> None:
    report = json.loads((smoke_project / "reports" / "deploy.json").read_text())
    offline = json.loads((smoke_project / "reports" / "test" / "metrics.json").read_text())["all"]
    manifest = verify(smoke_project / "models" / "release")
    assert report["release"] == manifest.release
    assert manifest.weights == weights_id(smoke_project / "models" / "onnx")
    for k in (1, 5, 10):
        recall = report["recall"][f"text_to_image_recall@{k}"]
        assert recall["offline"] == offline[f"text_to_image_recall@{k}"]["value"]
        assert abs(recall["served"] - recall["offline"]) <= recall["level_queries"] / offline["num_queries"] + 1e-9
    assert not (smoke_project / "serving").exists()  # which release serves is no stage's business
    assert not processes_that_name(str(smoke_project))
