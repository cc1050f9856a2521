"""What the README says is so: its commands exist, its Python runs, its figures are those of the committed run."""

import hashlib
import importlib.util
import json
import re
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest

from benchmarks.report import page
from clip_core.evaluate.summary import headline_table
from clip_core.evaluate.table import ablation_table
from clip_core.params_file import read_yaml
from tests.conftest import ROOT, run_in

README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in [*ROOT.glob("README*.md"), *DOCS]}
LOCK = read_yaml(ROOT / "dvc.lock")["stages"]
MODULES = {module for text in PAGES.values() for module in re.findall(r"python -m ([\w.]+)", text)}
LINKS = {(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(([^)#]+)\)", text)}


def after(mark: str, page: str) -> str:
    """The block of text that follows the comment `<!-- mark: ... -->`."""
    return re.split(rf"<!-- {mark}:.*?-->\n```text\n", page)[1].split("\n```")[0]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```.*?^```$", page, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", ["reports/metrics.json", "reports/valid/metrics.json", "reports/test/metrics.json"])
def test_each_committed_figure_is_what_the_run_in_dvc_lock_made(path: str) -> None:
    made = {out["path"]: out["md5"] for stage in LOCK.values() for out in stage.get("outs", [])}
    assert made[path] == hashlib.md5((ROOT / path).read_bytes()).hexdigest()


def test_the_run_in_dvc_lock_was_of_these_params() -> None:
    params = read_yaml(ROOT / "params.yaml")
    locked = [(key, value) for name, stage in LOCK.items() if name != "check" for key, value in params_of(stage)]
    assert len(locked) > 20
    assert [key for key, value in locked if reduce(getitem, key.split("."), params) != value] == []


def params_of(stage: dict) -> list[tuple[str, object]]:
    return list(stage.get("params", {}).get("params.yaml", {}).items())


def links(page: str) -> list[str]:
    """Where it leads, in any order: sentences are built otherwise in Chinese."""
    return sorted(re.findall(r"\]\(([^)]+)\)", page))


def levels(page: str) -> list[str]:
    """The signs before its headings."""
    return re.findall(r"^(##+) ", page, re.MULTILINE)


@pytest.mark.parametrize("page", [README, CHINESE], ids=["English", "Chinese"])
def test_the_headline_is_the_committed_report(page: str) -> None:
    assert after("headline", page) == headline_table(json.loads((ROOT / "reports" / "metrics.json").read_text()))


@pytest.mark.parametrize("page", [README, CHINESE], ids=["English", "Chinese"])
def test_the_ablation_is_the_committed_one(page: str) -> None:
    assert after("ablation", page) == ablation_table(json.loads((ROOT / "reports" / "ablation.json").read_text()))


@pytest.mark.parametrize("page", [README, CHINESE], ids=["English", "Chinese"])
def test_what_is_said_of_the_longer_scratch_with_each_seed_is_the_committed_ablation(page: str) -> None:
    arms = json.loads((ROOT / "reports" / "ablation.json").read_text())["arms"]
    longer, two = (
        arms[arm]["seen"]["text_to_image_mean_recall"]["by_seed"] for arm in ("longer_scratch", "two_stages")
    )
    said = re.split(r"unseen: longer_scratch.*\n```", page)[1].partition("\n## ")[0]
    assert re.findall(r"[+-]\d+\.\d", said) == [
        f"{100 * (one - other):+.1f}" for one, other in zip(longer, two, strict=True)
    ]


def test_the_chinese_page_has_the_same_commands_figures_and_links_and_each_leads_to_the_other() -> None:
    assert blocks(CHINESE) == blocks(README)
    assert links(CHINESE.replace("(README.md)", "(README.zh.md)", 1)) == links(README)
    assert "[English](README.md)" in CHINESE and "[中文](README.zh.md)" in README
    assert levels(CHINESE) == [*levels(README), "##"]  # the last one is its table of words


def test_the_python_example_gives_what_is_printed_beneath_it(smoke_project: Path) -> None:
    example, printed = re.findall(r"```(?:python|text)\n(.*?)\n```", README.split("## In Python")[1], re.DOTALL)[:2]
    output = run_in(smoke_project, "python", "-c", example).stdout.strip()
    # the last line tells what a model has learnt, and the smoke project's has learnt little
    assert output.splitlines()[:-1] == printed.splitlines()[:-1]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))))
def test_each_make_command_exists(target: str) -> None:
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_make_help_lists_every_command() -> None:
    (names,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = {line.split()[1] for line in run_in(ROOT, "make", "--no-print-directory", "help").stdout.splitlines()}
    assert listed == set(names.split()) - {"browser"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_each_module_that_is_run_exists(module: str) -> None:
    assert importlib.util.find_spec(module)


@pytest.mark.parametrize(("page", "link"), sorted(LINKS))
def test_each_link_leads_to_a_file(page: str, link: str) -> None:
    assert link.startswith("https://") or (ROOT / page).parent.joinpath(link).exists()


@pytest.mark.parametrize("page", sorted(PAGES))
def test_no_place_is_left_unfilled(page: str) -> None:
    assert re.findall(r"^[A-Z]+$", PAGES[page], re.MULTILINE) == []


def test_the_page_of_what_was_measured_is_made_of_the_committed_results() -> None:
    assert PAGES["docs/benchmarks.md"] == page()
