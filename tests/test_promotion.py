"""The promotion: a release takes the place of the one that serves when it is better, and for no other reason."""

import json
from pathlib import Path

import numpy as np
import pytest

from clip_core.config.evaluation import Evaluate
from clip_core.config.promotion import Promotion
from clip_core.config.section import hash_of
from clip_core.data.store import Store
from clip_core.evaluate.benchmark import Benchmark
from clip_core.evaluate.embed import Features
from clip_core.evaluate.promotion import Check, quality_checks
from clip_core.params_file import read_yaml
from clip_core.project import MARKS
from clip_core.serve import releases
from clip_core.serve.golden import read_golden
from clip_core.serve.released_model import largest_difference, load_released
from flows.promote import licence_check, speed_check
from tests.conftest import ENVIRONMENT, ROOT, run_in
from tests.tiny_release import Release, a_serving
from tests.under_load import changed

NUM, WIDTH = 200, 24
HOW = Evaluate(num_bootstrap=500, confidence=0.95, prompt_templates=("{}",))
PARAMS = Promotion(
    metric="all.text_to_image_mean_recall",
    equal="refuse",
    max_slice_loss={"category": 0.05},
    min_queries=20,
    max_slowdown=1.5,
    licences=None,
    approval=True,
)


def benchmark() -> Benchmark:
    """A caption for each picture; the first tenth of the pictures are animals, the others food."""
    return Benchmark(
        texts=[f"第{i}张" for i in range(NUM)],
        text_ids=[str(i) for i in range(NUM)],
        texts_seen=np.ones(NUM, dtype=bool),
        are_words=np.zeros(NUM, dtype=bool),
        image_ids=[str(i) for i in range(NUM)],
        is_seen=np.ones(NUM, dtype=bool),
        classes=["动物"] * (NUM // 5) + ["食物"] * (NUM - NUM // 5),
        pairs=np.stack([np.arange(NUM)] * 2, axis=1),
    )


def model(rng: np.random.Generator, noise: float | np.ndarray) -> Features:
    """What finds its pictures the worse the more noise it has, in all texts or in each."""
    images = rng.normal(size=(NUM, WIDTH))
    texts = images + np.reshape(noise, (-1, 1)) * rng.normal(size=(NUM, WIDTH))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (texts, images)]
    return Features(texts=unit[0], images=unit[1], class_names=[], classes=np.empty((0, 0)))


def judged(ours: Features, theirs: Features, **changes: object) -> list[Check]:
    return quality_checks(ours, theirs, benchmark(), PARAMS.model_copy(update=changes), HOW, seed=1)


def test_of_candidates_that_are_no_better_at_most_one_in_twenty_is_promoted() -> None:
    rng, tries = np.random.default_rng(1), 200
    without_slices: dict = {"max_slice_loss": {}}
    promoted = sum(
        all(check.passed for check in judged(model(rng, 2.0), model(rng, 2.0), **without_slices)) for _ in range(tries)
    )
    assert 0 < promoted <= 0.05 * tries  # a lucky one now and then, as the interval promises


def test_a_better_one_is_promoted_a_worse_and_an_equal_one_are_not() -> None:
    rng = np.random.default_rng(2)
    good, bad = model(rng, 1.6), model(rng, 2.4)
    (better, *_), (worse, *_), (equal, *_) = judged(good, bad), judged(bad, good), judged(good, good)
    assert (better.passed, worse.passed, equal.passed) == (True, False, False)
    assert better.told.startswith("better: ") and worse.told.startswith("worse: ")
    assert "difference 0.0 [0.0, 0.0]" in equal.told


def test_an_equal_one_is_promoted_when_params_say_so_and_a_worse_one_still_is_not() -> None:
    rng = np.random.default_rng(2)
    good, bad = model(rng, 1.6), model(rng, 2.4)
    assert judged(good, good, equal="promote")[0].passed
    assert not judged(bad, good, equal="promote")[0].passed


def test_one_that_is_lucky_is_told_apart_from_one_that_is_better() -> None:
    rng = np.random.default_rng(3)
    serves = model(rng, 2.0)
    candidates = (model(rng, 2.0) for _ in range(50))
    lucky = next(one for one in candidates if 0.02 < gain(one, serves) < 0.04)
    (main, *_) = judged(lucky, serves)
    assert not main.passed and main.told.startswith("not told apart: ")


def gain(ours: Features, theirs: Features) -> float:
    told = judged(ours, theirs)[0].told
    return float(told.partition("difference ")[2].partition(" ")[0]) / 100


def test_one_that_is_better_on_the_whole_and_loses_a_slice_is_refused_with_its_name() -> None:
    rng = np.random.default_rng(4)
    noise = np.where(np.arange(NUM) < NUM // 5, 4.0, 1.2)
    main, by_category = judged(model(rng, noise), model(rng, 2.0))
    assert main.passed
    assert not by_category.passed and "lost by 动物" in by_category.told
    assert judged(model(rng, noise), model(rng, 2.0), min_queries=NUM // 5 + 1)[1].passed  # too few to decide


def test_a_slower_one_is_refused() -> None:
    assert speed_check(0.015, 0.010, allowed=1.5).passed
    assert not speed_check(0.016, 0.010, allowed=1.5).passed


def test_a_licence_that_is_not_allowed_is_named_and_data_that_are_gone_are_no_answer(
    gallery: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "packed").mkdir(parents=True)
    (tmp_path / "data" / "packed" / "train").symlink_to(gallery.folder)
    monkeypatch.chdir(tmp_path)
    trained_on = hash_of(gallery.manifest)
    licences = set(gallery.pairs.licence)
    assert licence_check(trained_on, tuple(licences)).passed
    refused = licence_check(trained_on, ("MIT",))
    assert not refused.passed and ", ".join(sorted(licences)) in refused.told
    assert not licence_check("0" * 16, tuple(licences)).passed


def test_what_a_release_computes_is_what_torch_computed(release: Release) -> None:
    predictor, golden = load_released(release.folder), read_golden(release.folder / "golden")
    assert largest_difference(predictor, golden) < 1e-5
    wrong = golden._replace(text_features=-golden.text_features)
    assert largest_difference(predictor, wrong) > 0.1
    assert predictor.weights_id == release.truth.weights_id


def test_the_flow_decides_by_the_bytes_that_would_serve_and_writes_down_why(release: Release, tmp_path: Path) -> None:
    for mark in MARKS:
        (tmp_path / mark).touch()
    (tmp_path / "data" / "packed").mkdir(parents=True)
    (tmp_path / "data" / "packed" / "test").symlink_to(release.store.folder)
    same = changed(
        release, tmp_path / "same", lambda made: (made / "golden" / "note").write_text("none is served by it")
    )
    serving = a_serving(tmp_path / "serving", release, same)

    output = promotion(tmp_path, equal="refuse")
    assert f"release {same.id} is refused against {release.id}; all.text_to_image_mean_recall: not told apart" in output
    decision = json.loads((serving / "decisions" / f"{same.id}.json").read_text())
    assert not decision["is_promoted"]
    assert {check["name"] for check in decision["checks"]} >= {"parity", "all.text_to_image_mean_recall", "speed"}
    assert [event.event for event in releases.history(serving)][-1] == "refused"

    output = promotion(tmp_path, equal="promote")
    assert f"release {same.id} is promoted against {release.id}" in output
    assert f"`make rollout RELEASE={same.id}` approves of it" in output
    assert releases.current(serving) == release.id  # nothing that serves has changed


def promotion(project: Path, **changes: object) -> str:
    params = read_yaml(ROOT / "params.yaml")
    params["promotion"] |= changes | {"max_slowdown": 100.0}
    (project / "params.yaml").write_text(json.dumps(params))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "PYTHONPATH", str(ROOT))
        return run_in(project, "python", "-m", "flows.promote").stdout
