"""What the README says is so: its commands exist, its Python runs, its figures are those of the committed reports."""

import json
import re
from pathlib import Path

import pytest

from clip_core.evaluate.summary import headline_table
from clip_core.evaluate.table import ablation_table
from tests.conftest import ROOT, run_in

README = (ROOT / "README.md").read_text(encoding="utf-8")


def after(mark: str) -> str:
    """The block of text that follows the comment `<!-- mark: ... -->`."""
    return re.split(rf"<!-- {mark}:.*?-->\n```text\n", README)[1].split("\n```")[0]


def test_the_headline_is_the_committed_report() -> None:
    assert after("headline") == headline_table(json.loads((ROOT / "reports" / "metrics.json").read_text()))


def test_the_ablation_is_the_committed_one() -> None:
    assert after("ablation") == ablation_table(json.loads((ROOT / "reports" / "ablation.json").read_text()))


def test_the_python_example_gives_what_is_printed_beneath_it(smoke_project: Path) -> None:
    example, printed = re.findall(r"```(?:python|text)\n(.*?)\n```", README.split("## In Python")[1], re.DOTALL)[:2]
    output = run_in(smoke_project, "python", "-c", example).stdout.strip()
    # the last line tells what a model has learnt, and the smoke project's has learnt little
    assert output.splitlines()[:-1] == printed.splitlines()[:-1]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))))
def test_each_make_command_exists(target: str) -> None:
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_each_link_leads_to_a_file(link: str) -> None:
    assert link.startswith("https://") or (ROOT / link).exists()
