"""What a run leaves for people: figures that DVC shows and compares, a page, a summary; on the smoke project."""

import json
import re
import sys
from pathlib import Path

import pytest

from clip_core.evaluate.report.page import SECTIONS
from tests.conftest import run_in


def test_dvc_shows_the_metrics_and_the_plots(project_copy: Path) -> None:
    shown = run_in(project_copy, "dvc", "metrics", "show", "--md", "reports/metrics.json").stdout
    assert "test.seen.text_to_image_recall@1.value" in shown
    run_in(project_copy, "dvc", "plots", "show", "-o", "plots")
    html = (project_copy / "plots" / "index.html").read_text()
    assert "reports/stage1/train.csv" in html and "reports/stage2/validation.csv" in html


def test_dvc_compares_metrics_with_the_last_commit(project_copy: Path) -> None:
    path = project_copy / "reports" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["test"]["seen"]["text_to_image_mean_recall"]["value"] = 0.75
    path.write_text(json.dumps(metrics))
    said = run_in(project_copy, "dvc", "metrics", "diff", "--json").stdout.splitlines()
    compared = json.loads(next(line for line in said if line.startswith("{")))
    assert compared["reports/metrics.json"]["test.seen.text_to_image_mean_recall.value"]["new"] == 0.75


def test_the_report_of_a_real_run_is_self_contained_and_shows_every_part(smoke_project: Path) -> None:
    html = (smoke_project / "reports" / "report.html").read_text()
    assert SECTIONS.keys() - set(re.findall(r'<section id="(\w+)">', html)) <= {"ablation", "benchmarks"}
    addresses = set(re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', html))
    assert addresses == {"../NOTICE"}
    assert (smoke_project / "NOTICE").exists()
    assert html.count("<img ") > 200 and "does not add up" not in html


def test_the_metrics_hold_value_interval_and_chance_for_each_group(smoke_project: Path) -> None:
    metrics = json.loads((smoke_project / "reports" / "test" / "metrics.json").read_text())
    for group in ("seen", "unseen", "all", "unseen_words"):
        entry = metrics[group]["text_to_image_mean_recall"]
        assert 0 < entry["chance"] < 0.2 and entry["low"] <= entry["value"] <= entry["high"]
    assert metrics["zero_shot"]["num_candidates"] == 8
    stage1 = metrics["others"]["stage1"]
    assert set(stage1) == {"seen", "unseen", "all", "unseen_words", "zero_shot", "differences"}
    name = "text_to_image_recall@1"
    difference = stage1["differences"]["all"][name]
    assert difference["value"] == pytest.approx(metrics["all"][name]["value"] - stage1["all"][name]["value"])
    assert 0 < difference["p_value"] <= 1


def test_the_probability_of_a_match_is_fitted_on_validation_and_travels_with_export_and_release(
    smoke_project: Path,
) -> None:
    fitted = (smoke_project / "reports" / "valid" / "calibration.json").read_text()
    for folder in ("onnx", "release"):
        assert (smoke_project / "models" / folder / "calibration.json").read_text() == fitted
    details = json.loads((smoke_project / "reports" / "test" / "details.json").read_text())
    sizes = json.loads((smoke_project / "reports" / "test" / "metrics.json").read_text())["all"]
    bins = details["calibration"]["bins"]
    assert sum(row["count"] for row in bins) == sizes["num_queries"] * sizes["num_candidates"]
    for by in ("length", "script", "category"):
        assert sum(part["num_queries"] for part in details["slices"] if part["by"] == by) == sizes["num_queries"]


def test_the_summary_is_printed_from_the_metrics(smoke_project: Path) -> None:
    text = run_in(smoke_project, sys.executable, "-m", "clip_core.evaluate.summary").stdout
    value = json.loads((smoke_project / "reports" / "metrics.json").read_text())
    recall = value["test"]["seen"]["text_to_image_mean_recall"]["value"]
    assert f"{100 * recall:.1f}" in text and "reports/report.html" in text
