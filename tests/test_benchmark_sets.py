"""What the benchmarks' files say, and the prompts: against the paper's own averages and the installed reference."""

from pathlib import Path

import numpy as np
import pytest

from clip_core.errors import UserError
from clip_core.evaluate.benchmarks.described import RELEASED, described, every
from clip_core.evaluate.benchmarks.papers import table_of_paper
from clip_core.inference.prompts import classifier, negations, reference_templates, templates_of
from tests.conftest import ROOT

AVERAGE_OF_20 = (40.9, 53.5, 60.0, 60.2, 62.3)  # the paper's own, table 12
REFERENCE_LISTS = ("openai", "aircraft", "flower", "food", "eurosat", "country211", "kitti", "dtd", "normal")
OWN = """
kind: classification
title: 我的
groups: []
folder: mine
source: null
pictures: null
num_pictures: null
num_classes: null
templates: general
reference_templates: openai
metric: accuracy
contaminated: null
paper: null
"""


def test_the_figures_of_the_20_sets_have_the_average_that_the_paper_gives() -> None:
    figures = [next(iter(one.paper.zero_shot.values())) for one in described("elevater").values() if one.paper]
    assert len(figures) == 20
    assert np.mean(figures, axis=0) == pytest.approx(AVERAGE_OF_20, abs=0.051)


@pytest.mark.parametrize("name", ["muge_valid", "flickr30k_cn", "coco_cn"])
def test_the_mean_recall_is_that_of_the_recalls_beside_it(name: str) -> None:
    paper = every()[name].paper
    assert paper
    for figures in (paper.zero_shot, paper.finetuned):
        recalls = [values for metric, values in figures.items() if "@" in metric]
        (mean,) = (values for metric, values in figures.items() if "mean" in metric)
        assert np.mean(recalls, axis=0) == pytest.approx(mean, abs=0.11)


def test_every_benchmark_finds_its_templates_ours_and_the_reference_s() -> None:
    assert len(every()) == 27
    for name, benchmark in every().items():
        if benchmark.kind == "classification":
            assert all("{}" in template for template in templates_of(benchmark.templates)), name
            assert reference_templates(benchmark.reference_templates), name
            assert not negations(templates_of(benchmark.templates)), name
        if benchmark.paper:
            assert all(len(of) == len(RELEASED) for of in benchmark.paper.zero_shot.values())


@pytest.mark.parametrize("name", REFERENCE_LISTS)
def test_reference_templates_are_what_its_lambdas_give(name: str) -> None:
    from cn_clip.eval import cvinw_zeroshot_templates

    expected = [template("{}") for template in getattr(cvinw_zeroshot_templates, f"{name}_templates")]
    assert list(reference_templates(name)) == expected


def test_a_class_is_the_same_however_many_are_asked_at_once() -> None:
    draw = np.random.default_rng(1)
    known: dict[str, np.ndarray] = {}

    def encode(texts: list[str]) -> np.ndarray:
        rows = np.array([known.setdefault(text, draw.normal(size=8)) for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    names, templates = [f"类{i}" for i in range(120)], ["{}", "一张{}的照片", "{}"]
    found = classifier(encode, names, templates)
    for name, row in zip(names, found, strict=True):
        mean = np.mean([encode([template.replace("{}", name)])[0] for template in templates], axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean))


def test_a_name_that_negates_is_known_and_figs_and_africa_are_none() -> None:
    assert negations(["没有汽车", "汽车不是红色", "其他", "无花果", "非洲象"]) == ["没有汽车", "汽车不是红色"]


def test_a_name_that_is_none_is_answered_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"no benchmark is named 'flickr30k'; did you mean flickr30k_cn\?.*muge_valid"):
        described("flickr30k")
    with pytest.raises(UserError, match=r"no templates named 'flower'; did you mean flowers\?"):
        templates_of("flower")


def test_a_file_of_the_user_s_own_is_read_as_strictly(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(OWN, encoding="utf-8")
    assert described(str(file))["mine"].title == "我的"
    file.write_text(OWN.replace("metric: accuracy", "metric: acuracy").replace("folder: mine", "folder: ../mine"))
    with pytest.raises(UserError) as error:
        described(str(file))
    assert "2 wrong" in str(error.value) and "metric" in str(error.value) and "folder" in str(error.value)


def test_the_page_has_the_paper_s_table() -> None:
    assert table_of_paper() in (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_page_s_example_is_a_benchmark(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    file = tmp_path / "shop.yaml"
    file.write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert described(str(file))["shop"].title == "My shop"
