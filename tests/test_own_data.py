"""Somebody's own pairs go the whole way, from a CSV to answers of a real Triton."""

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageDraw

from clip_core.data.pairs import read_rejected
from clip_core.recipe import apply_recipes
from tests.conftest import new_project, run_in

COLOURS = {"红色": "red", "蓝色": "blue", "绿色": "green", "黄色": "gold", "黑色": "black", "紫色": "purple"}
SHAPES = ("圆形", "方块", "三角形", "横条")


def draw(colour: str, shape: str, size: int) -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    box = (32 - size, 32 - size, 32 + size, 32 + size)
    pen = ImageDraw.Draw(image)
    if shape == "圆形":
        pen.ellipse(box, fill=colour)
    elif shape == "方块":
        pen.rectangle(box, fill=colour)
    elif shape == "三角形":
        pen.polygon([(32, 32 - size), (32 - size, 32 + size), (32 + size, 32 + size)], fill=colour)
    else:
        pen.rectangle((32 - size, 28, 32 + size, 36), fill=colour)
    return image


def write_pairs(folder: Path) -> int:
    """240 drawings with a caption each, and three rows that nobody can use; returns the number of rows."""
    folder.mkdir()
    rows = []
    for chinese, colour in COLOURS.items():
        for shape in SHAPES:
            for size in range(12, 22):
                name = f"{colour}-{SHAPES.index(shape)}-{size}.png"
                draw(colour, shape, size).save(folder / name)
                rows.append((name, f"一个{chinese}的{shape}"))
    rows += [("missing.png", "没有这张图片"), ("../outside.png", "在外面"), (rows[0][0], " ")]
    pd.DataFrame(rows, columns=["image", "caption"]).to_csv(folder / "pairs.csv", index=False)
    return len(rows)


@pytest.fixture(scope="module")
def own_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = new_project(tmp_path_factory.mktemp("own") / "project")
    write_pairs(project / "my_pairs")
    for recipe in ("smoke", "table"):
        apply_recipes([project / "recipes" / f"{recipe}.yaml"], project / "params.yaml")
    run_in(project, "dvc", "repro")
    return project


def test_every_row_of_the_csv_is_kept_or_quarantined_with_file_line_and_reason(own_project: Path) -> None:
    counts = json.loads((own_project / "data" / "raw" / "counts.json").read_text())
    rejected = read_rejected(own_project / "data" / "quarantine" / "ingest")
    assert counts["read"] == 243
    assert counts["kept"] + counts["rejected"] == counts["read"]
    assert sorted(rejected["line"].astype(int)) == [242, 243, 244]
    assert rejected["file"].str.endswith("pairs.csv").all()
    assert rejected["reason"].str.len().min() > 0


def test_own_pairs_are_evaluated_both_ways_without_inventing_concepts(own_project: Path) -> None:
    metrics = json.loads((own_project / "reports" / "test" / "metrics.json").read_text())
    assert metrics["all"]["num_queries"] > 0
    assert "unseen" not in metrics
    assert "zero_shot" not in metrics


def test_the_report_of_own_pairs_claims_neither_concepts_nor_english(own_project: Path) -> None:
    html = (own_project / "reports" / "report.html").read_text()
    assert "my own pictures" in html and "A Chinese caption is the query" in html
    assert "Concepts seen" not in html and "English</b>" not in html and "../NOTICE" not in html


def test_triton_answers_for_own_pairs_as_torch_does(own_project: Path) -> None:
    deployed = json.loads((own_project / "reports" / "deploy.json").read_text())
    offline = json.loads((own_project / "reports" / "test" / "metrics.json").read_text())
    for k in (1, 5, 10):
        name = f"text_to_image_recall@{k}"
        assert deployed["recall"][name]["served"] == pytest.approx(offline["all"][name]["value"], abs=1e-9)
