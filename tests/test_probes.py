"""What the report tells beside means: probes of the text side, confused classes, recall at every k, the run before."""

import json
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from clip_core.config.evaluation import Evaluate
from clip_core.data.characters import characters_of
from clip_core.evaluate.benchmark import Benchmark
from clip_core.evaluate.confusion import confused
from clip_core.evaluate.embed import Features
from clip_core.evaluate.probes import (
    PROBES,
    in_other_script,
    probes,
    with_a_character_missing,
    with_two_characters_swapped,
)
from clip_core.evaluate.recall_curves import PLACES, recall_curves
from clip_core.evaluate.report.before import run_before
from tests.conftest import run_in

PARAMS = Evaluate(num_bootstrap=200, confidence=0.95, prompt_templates=("{}",))
CLASSES = ["动物", "食物", "符号"]


def benchmark_of(texts: list[str], classes: list[str | None] | None = None) -> Benchmark:
    """A benchmark of one picture a text."""
    n = len(texts)
    return Benchmark(
        texts=texts,
        text_ids=[f"t{i}" for i in range(n)],
        texts_seen=np.ones(n, dtype=bool),
        are_words=np.zeros(n, dtype=bool),
        image_ids=[f"p{i}" for i in range(n)],
        is_seen=np.ones(n, dtype=bool),
        classes=classes or [None] * n,
        pairs=np.column_stack([np.arange(n), np.arange(n)]),
    )


def features_of(texts: np.ndarray, images: np.ndarray, classes: np.ndarray | None = None) -> Features:
    return Features(
        texts, images, CLASSES if classes is not None else [], np.empty((0, 0)) if classes is None else classes
    )


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("发红的头", "發紅的頭"),
        ("一隻貓在車裡", "一只猫在车里"),
        ("红色 iPhone", "紅色 iPhone"),
        ("大小王", None),
        ("cat", None),
    ],
)
def test_a_text_in_the_other_script_has_no_character_of_its_own_left(text: str, other: str | None) -> None:
    assert in_other_script(text) == other
    changed = in_other_script(text)
    scripts = characters_of([text, changed or ""]).script().tolist()
    assert scripts in (["simplified", "traditional"], ["traditional", "simplified"], ["neither", "neither"])


def test_a_typing_mistake_changes_one_place_and_the_text_alone_decides_which() -> None:
    text = "一只红色的猫"
    swapped, missing = with_two_characters_swapped(text), with_a_character_missing(text)
    assert swapped == with_two_characters_swapped(text) != text
    assert sorted(swapped or "") == sorted(text)
    assert sum(one != other for one, other in zip(swapped or "", text, strict=True)) == 2
    assert missing is not None and len(missing) == len(text) - 1
    assert missing in {text[:i] + text[i + 1 :] for i in range(len(text))}
    assert with_two_characters_swapped("看看") is None and with_two_characters_swapped("猫") is None
    assert with_a_character_missing("红猫") is None


def test_a_model_that_reads_each_text_as_before_loses_nothing_and_one_that_reads_nothing_all() -> None:
    rng = np.random.default_rng(1)
    texts = [f"红色的东西{i}" for i in range(40)]
    images = unit(rng.normal(size=(40, 8)))
    features, benchmark = features_of(images, images), benchmark_of(texts)

    found = probes(lambda changed: images[: len(changed)], features, benchmark, PARAMS, seed=1)
    assert [probe["name"] for probe in found] == list(PROBES)
    for probe in found:
        assert (probe["before"], probe["after"], probe["num_queries"]) == (1, 1, 40)
        assert probe["difference"] == {"value": 0, "low": 0, "high": 0, "p_value": 1}
    assert found[0]["example"] == ["红色的东西0", "紅色的東西0"] and found[3]["example"][1] == "没有红色的东西0"

    lost = probes(lambda changed: -images[: len(changed)], features, benchmark, PARAMS, seed=1)
    for probe in lost:
        assert probe["difference"]["high"] < -0.9 and probe["difference"]["p_value"] < 0.05


def test_what_a_probe_does_not_change_is_not_asked() -> None:
    features = features_of(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    asked: list[list[str]] = []

    def encode(texts: list[str]) -> np.ndarray:
        asked.append(texts)
        return np.eye(3, dtype=np.float32)[: len(texts)]

    found = probes(encode, features, benchmark_of(["猫", "红猫", "cat"]), PARAMS, seed=1)
    scripts, swapped, missing, denied = asked
    assert scripts == ["貓", "紅貓"] and denied == ["没有猫", "没有红猫", "没有cat"]
    assert swapped == ["猫红", with_two_characters_swapped("cat")]
    assert missing == [with_a_character_missing("cat")]
    assert [probe["num_queries"] for probe in found] == [2, 2, 1, 3]
    assert found[-1]["applies_to"] == 1


def test_recall_at_every_k_is_that_of_the_full_sort() -> None:
    rng = np.random.default_rng(2)
    texts, images = unit(rng.normal(size=(60, 6))), unit(rng.normal(size=(60, 6)))
    curves = recall_curves(features_of(texts, images), benchmark_of([str(i) for i in range(60)]))
    for way, scores in (("text_to_image", texts @ images.T), ("image_to_text", images @ texts.T)):
        order = np.argsort(-scores, axis=1)
        places = np.argmax(order == np.arange(60)[:, None], axis=1)  # of the truth, from 0
        expected = [[k, round(float((places < k).mean()), 6)] for k in PLACES if k < 60]
        assert curves[way] == expected
    assert recall_curves(features_of(texts[:1], images[:1]), benchmark_of(["a"]))["text_to_image"] == [[1, 1.0]]


def test_the_commonest_mistakes_stand_first_with_their_surest_pictures() -> None:
    labels = ["动物"] * 4 + ["食物"] * 3 + [None]
    seen_as = np.array(
        [[0.9, 0.1, 0], [0.2, 0.8, 0], [0.1, 0.9, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    )
    images = seen_as.astype(np.float32)
    benchmark = benchmark_of([str(i) for i in range(8)], labels)
    found = confused(features_of(images, images, np.eye(3, dtype=np.float32)), benchmark)
    assert found[0] == {"class": "动物", "taken_for": "食物", "count": 2, "of": 4, "pictures": ["p2", "p1"]}
    assert {(row["class"], row["taken_for"], row["count"]) for row in found[1:]} == {
        ("动物", "符号", 1),
        ("食物", "动物", 1),
    }
    assert confused(features_of(images, images), benchmark) == []


def test_the_run_before_is_the_newest_commit_with_other_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    metrics, lock = Path("reports/metrics.json"), Path("dvc.lock")
    assert run_before(metrics, {"test": 1}, lock) is None  # no repository
    run_in(tmp_path, "git", "init", "-q", "-b", "main")
    metrics.parent.mkdir()
    for figure, seed, code in ((1, 2211, "a"), (2, 2212, "b"), (2, 2212, "b")):
        metrics.write_text(json.dumps({"test": figure, "figure": seed}), encoding="utf-8")
        stage = {
            "deps": [{"path": "data/checked/stage2.json", "md5": code}, {"path": "data/packed", "md5": "same"}],
            "params": {"params.yaml": {"seed": seed, "stage2": {"loss": {"name": "contrastive"}}}},
        }
        check = {"params": {"params.yaml": {"intervals": figure}}}  # what decides no figure
        old = {"deps": [{"path": "data/packed", "md5": str(figure)}], "params": {"params.yaml": {"seed": 1}}}
        YAML().dump({"stages": {"stage2": stage, "check": check, "report": old}}, lock)
        (tmp_path / "note").write_text(str(figure))
        run_in(tmp_path, "git", "add", "-A")
        run_in(tmp_path, "git", *["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-qm", "run"])
    before = run_before(metrics, {"test": 2, "figure": 2212}, lock)
    assert before is not None and before.metrics == {"test": 1, "figure": 2211}
    assert before.params == {"seed": ("2211", "2212")} and before.code == ["stage2"] and not before.data
    newest = run_before(metrics, {"test": 3}, lock)
    assert newest is not None and newest.metrics["test"] == 2 and newest.params == {} and newest.code == []
