"""Towers in fewer bits: what they cost is measured, and too much of it is refused with the figure."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_core.errors import UserError
from clip_core.serve.deploy import compare_recall
from clip_core.serve.parity import check_precision, mean_recall, measure_parity
from tests.test_deploy import toy_truth
from tests.test_export import write_expected
from tests.tiny_release import Release, tiny_export


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_towers_in_fewer_bits_are_smaller_take_any_shape_and_stay_near_torch(
    precision: str, release: Release, tmp_path: Path
) -> None:
    from clip_core.inference.onnx_towers import open_session, run

    onnx, expected = copy_of(release, tmp_path)
    found = measure_parity(expected, onnx, release.store.folder, tiny_export(**lenient(precision)))["precisions"]
    assert found["fp32"]["top10_overlap"] == 1.0 and found["fp32"]["mean_recall_difference"] == 0.0
    assert 0.99 < found[precision]["min_cosine"]["texts"] < 0.9999999
    text, full = open_session(onnx / "text.onnx"), open_session(release.onnx / "text.onnx")
    for batch, length in ((1, 2), (3, 7), (64, 16)):
        rows = np.full((batch, length), 3)
        ours, true = run(text, rows), run(full, rows)
        assert ours.dtype == np.float32
        assert ((ours * true).sum(axis=1) / np.linalg.norm(ours, axis=1) > 0.98).all()
    kept = text.get_modelmeta().custom_metadata_map["logit_scale"]
    assert kept == full.get_modelmeta().custom_metadata_map["logit_scale"]
    for tower, num_bytes in found[precision]["num_bytes"].items():
        assert num_bytes == (onnx / f"{tower}.onnx").stat().st_size
    assert sum(found[precision]["num_bytes"].values()) < sum(found["fp32"]["num_bytes"].values())


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_cosine": 1.0}, r"in int8 .* least cosine with torch's features is 0\.9\d+; export\.min_cosine: 1\.0"),
        ({"min_top10_overlap": 1.01}, r"of torch's top 10 are found; export\.min_top10_overlap: 1\.01"),
        ({"max_recall_difference": -1.0}, r"the mean recall differs by .*; export\.max_recall_difference: -1\.0"),
    ],
)
def test_towers_too_far_from_torch_are_refused_with_the_figure(limits: dict[str, Any], message: str) -> None:
    figures = {"min_cosine": {"texts": 0.998, "images": 0.9999}, "top10_overlap": 0.99, "mean_recall_difference": 0.001}
    with pytest.raises(UserError, match=f"{message}.*Nothing is published"):
        check_precision(figures, tiny_export(**(lenient("int8") | limits)))


def test_mean_recall_is_the_mean_of_recall_at_1_5_and_10() -> None:
    places = np.array([[0, *range(11, 20)], [9, 8, 1, *range(11, 18)], [9, 8, 7, 6, 5, 4, 2, 11, 12, 13]])
    right = [np.array([0]), np.array([1, 30]), np.array([2])]
    assert mean_recall(places, right) == pytest.approx((1 / 3 + 2 / 3 + 3 / 3) / 3)


def test_a_served_recall_too_far_from_the_offline_one_is_refused_with_both() -> None:
    found = [["a", "b"], ["b", "a"], ["a", "c"]]  # the last finds its picture second
    truth = toy_truth(offline=1.0)
    assert compare_recall(found, truth, allowed=0.4)["text_to_image_recall@1"]["served"] == pytest.approx(2 / 3)
    with pytest.raises(
        UserError, match=r"gRPC is 0\.6667, the offline one 1\.0000; export\.max_recall_difference: 0\.3"
    ):
        compare_recall(found, truth, allowed=0.3)


def test_an_export_holds_every_weight_once(release: Release) -> None:
    import onnx
    from safetensors import safe_open

    with safe_open(release.model / "model.safetensors", "np") as file:
        num_bytes = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118 - no mapping
    graphs = [onnx.load(release.onnx / f"{tower}.onnx").graph for tower in ("text", "image")]
    held = [onnx.numpy_helper.to_array(one).tobytes() for graph in graphs for one in graph.initializer]
    assert sum(map(len, held)) <= num_bytes
    large = [one for one in held if len(one) > 512]
    assert len(set(large)) == len(large)


def copy_of(release: Release, folder: Path) -> tuple[Path, Path]:
    """The export, to be changed, and the folder of what torch expects of it."""
    shutil.copytree(release.onnx, folder / "onnx")
    (folder / "expected").mkdir()
    write_expected(release, folder / "expected")
    return folder / "onnx", folder / "expected"


def lenient(precision: str) -> dict[str, Any]:
    return {"precision": precision, "min_cosine": 0.9, "min_top10_overlap": 0.5, "max_recall_difference": 1.0}
