"""Export: ONNX files that compute what torch computes, or none."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clip_core.serve.index import same_ranking
from clip_core.serve.parity import measure_parity, shapes
from tests.conftest import ROOT
from tests.tiny_release import Release, tiny_export


def test_parity_is_measured_on_many_shapes_and_all_test_data(release: Release) -> None:
    parity = json.loads((release.onnx / "parity.json").read_text())
    assert parity["num_shapes"] > 30
    assert parity["num_images"] == len(release.store)
    assert parity["num_texts"] == parity["top10"]["num_queries"] == len(release.truth.texts)
    assert max(parity["max_feature_difference"].values()) <= 1e-4
    assert parity["top10"]["different"] == 0


def test_the_towers_take_any_batch_and_any_length_and_normalise(release: Release) -> None:
    from clip_core.inference.onnx_towers import open_session, run

    text, image = open_session(release.onnx / "text.onnx"), open_session(release.onnx / "image.onnx")
    for batch in (1, 5, 100):
        for length in (2, 7, 16):
            features = run(text, np.full((batch, length), 3))
            np.testing.assert_allclose(np.linalg.norm(features, axis=1), np.ones(batch), rtol=1e-5)
        features = run(image, np.full((batch, 3, 32, 32), 77, dtype=np.uint8))
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), np.ones(batch), rtol=1e-5)


def test_padding_does_not_change_a_text(release: Release) -> None:
    from clip_core.inference.onnx_towers import open_session, run

    session = open_session(release.onnx / "text.onnx")
    row = np.array([[2, 5, 6, 3]])
    np.testing.assert_allclose(run(session, row), run(session, np.pad(row, ((0, 0), (0, 9)))), atol=1e-6)


def test_the_names_of_inputs_and_outputs_are_the_projects(release: Release) -> None:
    from clip_core.inference.onnx_towers import open_session

    def names(file: str) -> tuple[str, str]:
        session = open_session(release.onnx / file)
        return session.get_inputs()[0].name, session.get_outputs()[0].name

    assert names("text.onnx") == ("token_ids", "text_features")
    assert names("image.onnx") == ("pixels", "image_features")


def test_the_files_tell_nothing_about_the_machine(release: Release) -> None:
    for file in release.onnx.iterdir():
        assert str(Path.cwd()).encode() not in file.read_bytes(), file
        assert b"site-packages" not in file.read_bytes(), file


def test_exporting_again_gives_the_same_bytes(release: Release, tmp_path: Path) -> None:
    from clip_core.model.contract import read_contract
    from clip_core.model.weights import load_weights
    from clip_core.serve.export import write_onnx

    write_onnx(load_weights(release.model), read_contract(release.model), 20, tmp_path)
    for name in ("text.onnx", "image.onnx"):
        assert (tmp_path / name).read_bytes() == (release.onnx / name).read_bytes()


def test_towers_that_differ_from_torch_are_refused(release: Release, tmp_path: Path) -> None:
    limits = tiny_export()
    write_expected(release, tmp_path)
    assert measure_parity(tmp_path, release.onnx, release.store.folder, limits)["top10"]["different"] == 0
    features = np.load(tmp_path / "shape-3.npy")
    np.save(tmp_path / "shape-3.npy", features + np.float32(2e-4))
    with pytest.raises(ValueError, match=r"differ from torch by 2.*Nothing is published"):
        measure_parity(tmp_path, release.onnx, release.store.folder, limits)


@pytest.mark.parametrize("file", ["shape-0", "shape-3"])
def test_a_feature_that_is_no_number_is_refused(file: str, release: Release, tmp_path: Path) -> None:
    limits = tiny_export()
    write_expected(release, tmp_path)
    features = np.load(tmp_path / f"{file}.npy")
    features[0, 0] = np.nan
    np.save(tmp_path / f"{file}.npy", features)
    with pytest.raises(ValueError, match=r"differ from torch by nan.*Nothing is published"):
        measure_parity(tmp_path, release.onnx, release.store.folder, limits)


def test_another_top_10_is_refused(release: Release, tmp_path: Path) -> None:
    write_expected(release, tmp_path)
    np.save(tmp_path / "images.npy", np.roll(release.truth.image_features, 1, axis=0))
    lenient = tiny_export(max_feature_difference=10.0, tie_margin=1e-6)
    with pytest.raises(ValueError, match="queries find another top 10"):
        measure_parity(tmp_path, release.onnx, release.store.folder, lenient)


def test_nothing_is_published_when_parity_fails(release: Release, tmp_path: Path) -> None:
    from clip_core.serve.export import export

    out = tmp_path / "onnx"
    impossible = tiny_export(max_feature_difference=1e-12)
    with pytest.raises(ValueError, match="max_feature_difference allows 1e-12"):
        export(release.model, release.store, list(release.truth.texts), impossible, out)
    assert list(tmp_path.iterdir()) == []


def test_only_scores_within_the_margin_may_change_places() -> None:
    true_scores = np.array([[0.9, 0.8, 0.8001, 0.1]])
    assert same_ranking(true_scores, np.array([[0, 2, 1]]), 0).all()
    assert same_ranking(true_scores, np.array([[0, 1, 2]]), 2e-4).all()
    assert not same_ranking(true_scores, np.array([[0, 1, 2]]), 5e-5).any()
    assert not same_ranking(true_scores, np.array([[0, 2, 3]]), 2e-4).any()


def test_a_model_below_the_gates_is_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"seen": {"text_to_image_mean_recall": {"value": 0.01}}}))
    code = f"""
import sys
from pathlib import Path
from stages.command import sections_of
from stages.export import main
sections = sections_of(main, "stages.export", Path({str(ROOT / "params.yaml")!r}))
try:
    paths = dict.fromkeys(("model", "calibration", "packed", "out"), Path("none"))
    main(**sections, **paths, metrics=Path({str(metrics)!r}))
except ValueError as error:
    print(error, "torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "seen.text_to_image_mean_recall is 0.0100" in result.stdout
    assert result.stdout.rstrip().endswith("False")


def write_expected(release: Release, folder: Path) -> None:
    """What the exporting process leaves for the comparison; the shapes' features are onnxruntime's own here."""
    from clip_core.inference.onnx_towers import open_session, run
    from clip_core.model.contract import read_contract

    sessions = {tower: open_session(release.onnx / f"{tower}.onnx") for tower in ("text", "image")}
    for number, (tower, rows) in enumerate(shapes(read_contract(release.onnx))):
        np.save(folder / f"shape-{number}.npy", run(sessions[tower], rows))
    (folder / "texts.json").write_text(json.dumps(list(release.truth.texts)))
    np.save(folder / "texts.npy", release.truth.text_features)
    np.save(folder / "images.npy", release.truth.image_features)
