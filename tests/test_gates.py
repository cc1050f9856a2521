"""Gates let good models pass and name what is wrong with the others."""

import json
from pathlib import Path

import pytest

from clip_core.evaluate.gates import check_gates
from tests.conftest import run_in
from tests.test_rerun import edit, stages_run

METRICS = {
    "seen": {"text_to_image_mean_recall": {"value": 0.25, "low": 0.2, "high": 0.3, "chance": 0.01}, "num_queries": 9},
    "zero_shot": {"top1_accuracy": {"value": 0.4, "low": 0.3, "high": 0.5, "chance": 0.125}},
    "others": {"stage1": {"seen": {"text_to_image_mean_recall": {"value": 0.1}}}},
}


def test_a_model_at_the_limit_passes() -> None:
    check_gates(METRICS, {"seen.text_to_image_mean_recall": 0.25, "zero_shot.top1_accuracy": 0.2})


def test_every_metric_below_its_limit_is_named_with_value_and_limit() -> None:
    with pytest.raises(ValueError, match=r"params\.yaml") as error:
        check_gates(METRICS, {"seen.text_to_image_mean_recall": 0.5, "zero_shot.top1_accuracy": 0.9})
    assert "seen.text_to_image_mean_recall is 0.2500, allowed from 0.5" in str(error.value)
    assert "zero_shot.top1_accuracy is 0.4000, allowed from 0.9" in str(error.value)


def test_a_metric_that_is_not_a_number_does_not_pass() -> None:
    with pytest.raises(ValueError, match="worse than the gates allow"):
        check_gates({"seen": {"mean_recall": {"value": float("nan")}}}, {"seen.mean_recall": 0.0})


def test_a_misspelt_metric_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"no metric named seen\.recal\. There are: .*zero_shot\.top1_accuracy"):
        check_gates(METRICS, {"seen.recal": 0.1})


def test_a_model_below_its_gate_is_not_exported_and_goes_on_when_the_gate_is_lowered(project_copy: Path) -> None:
    metric = "seen.text_to_image_mean_recall"
    metrics = json.loads((project_copy / "reports" / "valid" / "metrics.json").read_text())
    value = metrics["seen"]["text_to_image_mean_recall"]["value"]
    edit(project_copy, "gates", metric, 0.9)
    stopped = run_in(project_copy, "dvc", "repro", check=False)
    assert stopped.returncode != 0
    assert stages_run(stopped.stdout) == {"check", "export"}  # and neither index nor deploy
    assert f"error: the model is worse than the gates allow, so it is not exported:\n  {metric} is" in stopped.stdout
    assert f"{metric} is {value:.4f}, allowed from 0.9" in stopped.stdout
    assert not (project_copy / "models" / "onnx").exists()

    edit(project_copy, "gates", metric, 0.0)  # as before, so DVC's cache has what the export makes
    run_in(project_copy, "dvc", "repro")
    assert (project_copy / "models" / "onnx" / "text.onnx").exists()
