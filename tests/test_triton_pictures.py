"""Pictures as questions on a real Triton: those that resemble them, and which of the caller's labels fit."""

import shutil
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from clip_core.inference.calibration import CALIBRATION_FILE, Calibration
from clip_core.inference.prompts import classifier, templates_of
from clip_core.serve.queries import ask, classify, lengths_of, similar
from clip_core.serve.release import STATES_ID
from clip_core.serve.triton import Server, Triton, connect
from tests.tiny_release import TOP_K, Release, triton_of
from tests.under_load import changed

LABELS = ["红色", "一只猫", "圆形"]


class Calibrated(NamedTuple):
    calibration: Calibration
    triton: Triton
    made: str  # the id of the release
    num_warm: int  # batches of texts before the first question


@pytest.fixture(scope="module")
def calibrated(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Generator[Calibrated]:
    """A server of the release with a calibration."""
    folder = tmp_path_factory.mktemp("calibrated")
    calibration = Calibration(
        weights=release.truth.weights_id, slope=20.0, intercept=-9.0, num_candidates=50, matches=1.0
    )

    def change(made: Path) -> None:
        (made / "models/clip_classify/1" / CALIBRATION_FILE).write_text(calibration.model_dump_json(), encoding="utf-8")

    made = changed(release, folder / "changed", change)
    with triton_of(made, folder=folder / "served") as triton:
        yield Calibrated(calibration, triton, made.id, num_batches(triton, f"text_core_{made.id}"))


def pictures_of(release: Release) -> list[bytes]:
    return [release.store.image_bytes(place) for place in range(len(release.store))]


def test_a_picture_finds_what_torch_finds_and_itself_first(triton: Server, release: Release) -> None:
    with closing(connect(triton.address)) as client:
        found = similar(client, pictures_of(release))
    true = release.truth.image_features @ release.truth.image_features.T
    for place, (answer, scores) in enumerate(zip(found, true, strict=True)):
        places = [release.truth.image_ids.index(image_id) for image_id in answer.ids]
        assert scores[places[0]] == pytest.approx(1, abs=1e-5) and scores[place] == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(answer.scores, -np.sort(-scores)[:TOP_K], atol=1e-5)
        np.testing.assert_allclose(answer.scores, scores[places], atol=1e-5)
        assert answer.release == release.id


@pytest.mark.parametrize("templates", [(), ("{}", "一张{}的照片")], ids=["our templates", "their own"])
def test_labels_are_judged_as_in_evaluation_by_the_calibration(
    templates: tuple[str, ...], calibrated: Calibrated, release: Release
) -> None:
    from clip_core.inference.predictor import load

    calibration, triton = calibrated.calibration, calibrated.triton
    classes = classifier(load(release.model).encode_texts, LABELS, templates or templates_of("general"))
    true = release.truth.image_features @ classes.T
    judged = classify(triton.client, pictures_of(release), LABELS, templates)
    np.testing.assert_allclose(judged.scores, true, atol=1e-5)
    np.testing.assert_allclose(judged.probabilities, calibration.probability(true, len(LABELS)), atol=1e-4)
    odds = np.exp(calibration.slope * true.astype(np.float64))
    np.testing.assert_allclose(judged.shares, odds / odds.sum(axis=1, keepdims=True), atol=1e-4)


def test_without_a_calibration_there_are_scores_and_no_probabilities(triton: Server, release: Release) -> None:
    with closing(connect(triton.address)) as client:
        judged = classify(client, pictures_of(release)[:3], LABELS)
    assert (judged.scores.shape, judged.probabilities.shape, judged.shares.shape) == ((3, 3), (3, 0), (3, 0))


def test_each_picture_of_a_request_may_have_labels_of_its_own(triton: Server, release: Release) -> None:
    pictures = pictures_of(release)[:2]
    rows = [["红色", "圆形"], ["圆形", "一只猫"]]
    tensors = {
        "IMAGE": np.array(pictures, dtype=object).reshape(-1, 1),
        "LABELS": np.array([[label.encode() for label in row] for row in rows], dtype=object),
    }
    with closing(connect(triton.address)) as client:
        (scores,) = ask(client, "clip_classify", tensors, ["scores"])
        for picture, row, found in zip(pictures, rows, scores, strict=True):
            np.testing.assert_allclose(found, classify(client, [picture], row).scores[0], atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        (["猫", " "], (), "item 0: no label, or an empty one"),
        (["猫"], ("一张照片",), "item 0: in the template '一张照片' no {} stands for the label"),
        (["猫", "\0"], ("{}",), r"the label in its template, '\\x00': the text is empty"),
        ([str(number) for number in range(1025)], ("{}", "一张{}"), "are 2050 texts; 2048 are allowed"),
    ],
)
def test_labels_that_are_none_are_refused_with_the_reason(
    labels: list[str], templates: tuple[str, ...], message: str, triton: Server, release: Release
) -> None:
    with closing(connect(triton.address)) as client, pytest.raises(ValueError, match=message):
        classify(client, pictures_of(release)[:1], labels, templates)


@pytest.mark.parametrize("model", ["clip_similar", "clip_classify"])
def test_a_picture_that_is_none_is_named_in_a_request_of_several(model: str, triton: Server, release: Release) -> None:
    pictures = np.array([*pictures_of(release)[:2], b"hello"], dtype=object).reshape(-1, 1)
    beside = {"LABELS": np.array([["猫".encode()]] * 3, dtype=object)} if model == "clip_classify" else {}
    with closing(connect(triton.address)) as client, pytest.raises(ValueError, match="item 2: not a picture"):
        ask(client, model, {"IMAGE": pictures} | beside, ["scores"])


def num_batches(triton: Triton, model: str) -> int:
    (stats,) = triton.client.get_inference_statistics(model).model_stats
    return stats.execution_count


def test_every_length_of_texts_is_computed_before_the_first_question(calibrated: Calibrated) -> None:
    assert calibrated.num_warm == len(lengths_of(16))


def test_a_release_from_before_there_was_such_a_model_is_refused_by_name(release: Release, tmp_path: Path) -> None:
    def change(made: Path) -> None:
        shutil.rmtree(made / "models" / "clip_similar")

    old = changed(release, tmp_path / "old", change)
    assert not list((old.folder / "models" / "clip_similar").rglob(STATES_ID))
    with (
        pytest.raises(ValueError, match="made before there was clip_similar; make the release again"),
        triton_of(old, folder=tmp_path / "served"),
    ):
        pass


def test_a_release_that_judges_wrongly_does_not_pass_its_golden_queries(release: Release, tmp_path: Path) -> None:
    from clip_core.serve.deploy import proved
    from clip_core.serve.golden import WrongAnswers

    def change(made: Path) -> None:
        with (made / "models/clip_classify/1/model.py").open("a") as code:
            code.write("from clip_core.serve import triton_classify\ntriton_classify.unit = lambda rows: rows[::-1]\n")

    wrong = changed(release, tmp_path / "wrong", change)
    with (
        pytest.raises(WrongAnswers, match="label_scores differ by"),
        proved(wrong.folder, wrong.id, tmp_path / "log"),
    ):
        pass


def test_a_question_to_a_model_that_is_gone_is_no_mistake_of_the_callers(
    calibrated: Calibrated, release: Release
) -> None:
    triton = calibrated.triton
    (text_model,) = (name for name in triton.states() if name.startswith("clip_text_"))
    triton.unload(text_model)
    try:
        with pytest.raises(InferenceServerException) as caught:
            classify(triton.client, pictures_of(release)[:1], ["还没有问过的标签"])
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
    finally:
        triton.load(text_model)
