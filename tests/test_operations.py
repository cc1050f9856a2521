"""The alerts and the dashboard know the gateway's metrics, and docs/operations.md each alert."""

import json
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from clip_core.serve.answers import Answers
from clip_core.serve.canary import Canary
from clip_core.serve.metrics import Metrics
from clip_core.serve.upstream import Upstream
from tests.conftest import ROOT, run_in
from tests.page_server import Supervised

RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "gateway.json"
NAME = re.compile(r"clip_gateway_\w+")
OF_PROMETHEUS = {"instance", "le", "job"}  # labels that it adds itself


def alerts() -> list[dict]:
    (group,) = YAML(typ="safe").load(RULES)["groups"]
    return group["rules"]


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [rule["expr"] for rule in alerts()] + [one["expr"] for panel in panels for one in panel["targets"]]


def known() -> dict[str, set[str]]:
    """The labels of each sample that /metrics can have."""
    metrics = Metrics(Upstream(Supervised(""), Answers(0), Canary(Path(), None)))
    metrics.seen({"type": "http", "state": {}, "method": "GET", "path": "/"}, 200, 0.1)
    samples = re.findall(r"^(\w+)(?:\{(.*)\})? ", metrics.text().decode(), re.MULTILINE)
    return {name: set(re.findall(r'(\w+)="', labels)) for name, labels in samples}


@pytest.mark.parametrize("expression", expressions(), ids=lambda text: text[:60])
def test_an_expression_knows_the_metrics_and_their_labels(expression: str) -> None:
    metrics = known()
    names = set(NAME.findall(expression))
    assert names <= metrics.keys()
    asked = set(re.findall(r'(\w+)(?:=|!=|=~|!~)"', expression))
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        asked |= set(re.split(r",\s*", grouped))
    assert asked <= OF_PROMETHEUS.union(*(metrics[name] for name in names))


def test_every_metric_that_the_gateway_names_is_watched() -> None:
    watched = {name for expression in expressions() for name in NAME.findall(expression)}
    others = {"clip_gateway_request_seconds_count", "clip_gateway_request_seconds_sum"}  # of the histogram
    assert {name for name in known() if not name.endswith("_created")} - others == watched


def test_what_an_alert_says_has_the_labels_that_its_expression_leaves() -> None:
    for rule in alerts():
        said = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        grouped = re.search(r"by \(([^)]*)\)", rule["expr"])
        left = set(re.split(r",\s*", grouped[1])) if grouped else {"instance", "model"}
        assert said <= left, rule["alert"]


def test_the_docs_say_what_to_do_at_each_alert() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (\w+)$", page, re.MULTILINE) == [rule["alert"] for rule in alerts()]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install -y prometheus (as root)")
def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    assert "SUCCESS" in run_in(tmp_path, "promtool", "check", "rules", str(RULES)).stdout
