"""The tables of docs/serving.md are those of the committed proofs and results."""

import json
import re

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def table(head: list[str], rows: list[list[object]]) -> str:
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rollouts() -> str:
    kills = json.loads((ROOT / "reports/proofs/rollouts.json").read_text())["figures"]["kills"]
    names = {"before": "before {}", "after": "after {}"}
    head = ["killed", "then `current`", "public", "put right by", "serves", "failed requests", "mixed answers"]
    rows = [
        [
            names.get(kill["when"], f"in {{}}, after {kill['when']} models").format(kill["step"]),
            *(kill[key] for key in ("current", "public", "put_right_by", "serves", "failed_requests", "mixed_answers")),
        ]
        for kill in kills
    ]
    return table(head, rows)


def recovery() -> str:
    figures = json.loads((ROOT / "reports/proofs/recovery.json").read_text())["figures"]
    head = ["process", "kills", "ready again after, s", "searches down, s", "failed searches"]

    def spread(times: list[dict], key: str) -> str:
        values = sorted(one[key] for one in times)
        return f"{values[0]}" if len(values) == 1 else f"{values[0]} - {values[-1]}"

    return table(
        head,
        [
            [
                name.removeprefix("bin/"),
                len(times),
                *(spread(times, key) for key in ("ready_after_seconds", "searches_down_seconds", "failed")),
            ]
            for name, times in figures.items()
        ],
    )


def search() -> str:
    result = json.loads((ROOT / "benchmarks/results/search-batches.json").read_text())
    head = ["before", "times as many searches", "per second", "before", "p50, s", "before", "p99, s", "before"]

    def spread(values: list[float]) -> str:
        return " - ".join(f"{value:.2f}" for value in values)

    rows = [
        [
            name.partition(" / ")[2],
            spread(row["ratio"]),
            *(f"{row['num'] / row[f'{side}_seconds'][1]:.1f}" for side in ("our", "peer")),
            *(spread(row[f"{side}_{part}"]) for part in ("p50", "p99") for side in ("our", "peer")),
        ]
        for name, row in result["rows"].items()
    ]
    return table(head, rows)


@pytest.mark.parametrize("make", [rollouts, recovery, search])
def test_a_table_is_that_of_its_record(make) -> None:
    assert re.split(f"<!-- {make.__name__} -->\n", PAGE)[1].startswith(f"{make()}\n")
