"""A benchmark small enough to check by eye, from the reference's files to every figure of its metrics.

Twelve pictures (A to L) and twelve texts (a to l). `b` reads like `a` and means another picture; `a` and `e` have two
pictures, H and I two texts; `j` names no picture and `k` one that is not there; no text names K and L; `i` is too long
and J too narrow for training.
"""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from clip_core.config.evaluation import Evaluate
from clip_core.data.store import Store, open_store
from clip_core.evaluate.answers import answers_of
from clip_core.evaluate.benchmark import Benchmark, questions, read_benchmark
from clip_core.evaluate.embed import Features
from clip_core.evaluate.measure import details, measure
from clip_core.recipe import apply_recipes
from tests.conftest import ROOT
from tests.small_raw import drawing, encoded
from tests.stage_calls import call

TEXTS = {
    "a": ("红色的包", "AB"),
    "b": ("红色的包", "C"),
    "c": ("一双鞋", "D"),
    "d": ("雨伞", "E"),
    "e": ("帽子", "FG"),
    "f": ("手表", "H"),
    "g": ("一块银色的手表", "H"),
    "h": ("月亮", "I"),
    "i": ("很" * 200 + "长", "I"),
    "j": ("没有图的", ""),
    "k": ("图丢了的", "Z"),
    "l": ("高高的塔", "J"),
}
PICTURES = {name: encoded(drawing(i)) for i, name in enumerate("ABCDEFGHIKL")}
PICTURES["J"] = encoded(drawing(99, 16, 65))
SCORES = """
     A B C D E F G H I J K L
  a  5 9 7 0 0 0 0 0 0 0 0 0   its best picture is B, and right: rank 1
  b  5 9 7 0 0 0 0 0 0 0 0 0   reads like a, so B comes before its own C: 2
  c  0 0 0 9 0 5 0 0 0 0 0 0   1
  d  0 0 0 0 7 5 0 0 0 0 9 8   after the two that no text names: 3
  e  7 7 7 7 7 2 6 0 0 0 0 0   G after five others: 6
  f  0 0 0 0 0 5 0 8 0 0 8 0   as good as K, which counts as better: 2
  g  0 0 0 0 0 5 0 9 0 0 0 0   1
  h  1 1 1 1 1 1 1 1 0 1 1 1   after all others: 12
  i  1 4 4 4 4 4 4 4 3 4 4 4   after all others but A: 11
  j  0 0 0 0 0 5 0 0 9 0 0 0   asks nothing
  k  0 0 0 0 0 5 0 0 0 8 0 0   asks nothing
  l  6 6 6 6 0 0 0 0 0 5 0 0   5
"""
# And down the columns, each picture among the twelve texts: A after b, e and l: 4. B after b: 2. C after a and e: 3.
# D: 1. E after e: 2. F after c, d, f, g, i, j and k: 8. G: 1. H: 1. I after j: 2. J after k: 2. K and L ask nothing.
PARAMS = Evaluate(num_bootstrap=500, confidence=0.9, prompt_templates=("{}",))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the data stages, which have read the benchmark as `test`, and a few pairs as train and valid."""
    folder = tmp_path_factory.mktemp("handmade")
    write_split(folder / "mine", "test", TEXTS, PICTURES)
    for split, first in (("train", 100), ("valid", 200)):
        pictures = {str(i): encoded(drawing(first + i)) for i in range(3)}
        write_split(folder / "mine", split, {i: ("一只小猫", i) for i in pictures}, pictures)
    recipe, params_file = folder / "own.yaml", folder / "params.yaml"
    params_file.write_bytes((ROOT / "params.yaml").read_bytes())
    source = {"source": "muge", "path": str(folder / "mine"), "licence": "CC0-1.0", "valid_percent": 2}
    recipe.write_text(json.dumps({"data": source | {split: split for split in ("train", "valid", "test")}}))
    apply_recipes([recipe], params_file)
    call("ingest", params_file, folder / "raw", folder / "refused", folder / "tombstones.txt")
    call("validate", params_file, folder / "raw", folder / "valid", folder / "bad", folder / "page")
    call("curate", params_file, *(folder / name for name in ("valid", "raw", "curated", "removed", "curation")))
    call("pack", params_file, folder / "curated", folder / "raw", folder / "packed")
    return folder


def write_split(folder: Path, name: str, texts: dict[str, tuple[str, str]], pictures: dict[str, bytes]) -> None:
    """The split in the reference's format; the letters of a text's second part name its pictures."""
    folder.mkdir(exist_ok=True)
    lines = [
        json.dumps({"text_id": text_id, "text": text, "image_ids": list(image_ids)})
        for text_id, (text, image_ids) in texts.items()
    ]
    (folder / f"{name}_texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = [f"{image_id}\t{base64.b64encode(picture).decode()}" for image_id, picture in pictures.items()]
    (folder / f"{name}_imgs.tsv").write_text("\n".join(rows), encoding="utf-8")


@pytest.fixture
def store(data: Path) -> Store:
    return open_store(data / "packed" / "test")


def features_of(benchmark: Benchmark) -> Features:
    """A model whose score of every text and picture is that of SCORES."""
    rows = [line.split()[1:13] for line in SCORES.strip().splitlines()[1:]]
    assert [text_id.removeprefix("test/") for text_id in benchmark.text_ids] == list(TEXTS)
    assert [image_id.removeprefix("test/") for image_id in benchmark.image_ids] == sorted(PICTURES)
    return Features(np.array(rows, dtype=np.float32), np.eye(12, dtype=np.float32), [], np.empty((0, 0)))


def test_every_text_and_picture_is_there_but_for_the_one_that_is_not(data: Path, store: Store) -> None:
    benchmark = read_benchmark(store)
    asked = questions(benchmark, "all")
    assert (len(asked.texts), len(asked.images)) == (12, 12)
    assert "".join(benchmark.text_ids[i][-1] for i in asked.asking_texts) == "abcdefghil"
    assert "".join(benchmark.image_ids[i][-1] for i in asked.asking_images) == "ABCDEFGHIJ"
    counts = {
        name: json.loads((data / name / "counts.json").read_text()) for name in ("raw", "valid", "curated", "packed")
    }
    assert all(found["read"] == found["kept"] + found["rejected"] for found in counts.values())
    assert counts["raw"]["by_reason"] == {"image_missing": 1}
    assert (counts["raw"]["pictures_without_text"], counts["raw"]["texts_without_picture"]) == (2, 2)
    assert counts["valid"]["rejected"] == 0
    assert counts["valid"]["break_a_rule_and_stay"] == {"test": {"picture_aspect": 1, "caption_length": 1}}


def test_every_figure_is_the_one_that_the_eye_finds(store: Store) -> None:
    benchmark = read_benchmark(store)
    metrics = measure(features_of(benchmark), benchmark, PARAMS, seed=1)
    assert set(metrics) == {"seen", "all"}  # no concepts: every text counts as seen
    for found in metrics.values():
        values = {name: entry["value"] for name, entry in found.items() if isinstance(entry, dict)}
        assert values == pytest.approx(
            {
                "text_to_image_recall@1": 3 / 10,  # a c g
                "text_to_image_recall@5": 7 / 10,  # and b d f l
                "text_to_image_recall@10": 8 / 10,  # and e
                "text_to_image_mean_recall": 18 / 30,
                "text_to_image_map@r": 2.5 / 10,  # c g, and half of a, whose second place is wrong
                "text_to_image_median_rank": 2,
                "image_to_text_recall@1": 3 / 10,  # D G H
                "image_to_text_recall@5": 9 / 10,  # all but F
                "image_to_text_recall@10": 10 / 10,
                "image_to_text_mean_recall": 22 / 30,
                "image_to_text_map@r": 3.25 / 10,  # D G, both of H, and of I the second with a precision of 1 / 2
                "image_to_text_median_rank": 2,
                "mean_recall": 40 / 60,
            }
        )
        sizes = {name: number for name, number in found.items() if not isinstance(number, dict)}
        assert sizes == {
            "num_queries": 10,
            "num_candidates": 12,
            "num_pictures_without_text": 2,
            "num_texts_without_picture": 2,
            "text_to_image_num_units": 8,
            "image_to_text_num_units": 8,
            "text_to_image_num_ties": 1,  # f with K
            "image_to_text_num_ties": 4,  # A B C E
        }


def test_chance_is_that_of_twelve_candidates_with_one_right_answer_or_two(store: Store) -> None:
    benchmark = read_benchmark(store)
    found = measure(features_of(benchmark), benchmark, PARAMS, seed=1)["all"]
    one, two = {1: 1 / 12, 5: 5 / 12, 10: 10 / 12}, {1: 1 / 6, 5: 15 / 22, 10: 65 / 66}
    for way in ("text_to_image", "image_to_text"):  # each way eight queries have one right answer, and two have two
        for k in (1, 5, 10):
            assert found[f"{way}_recall@{k}"]["chance"] == pytest.approx((8 * one[k] + 2 * two[k]) / 10)


def test_the_intervals_draw_what_shares_an_answer_together(store: Store) -> None:
    benchmark = read_benchmark(store)
    features = features_of(benchmark)
    answers = answers_of(features, benchmark)["all"]
    units = {way: answers[f"{way}_recall@1"].units.tolist() for way in ("text_to_image", "image_to_text")}
    assert units == {
        "text_to_image": [0, 1, 2, 3, 4, 5, 5, 6, 6, 7],  # f and g ask for H, h and i for I
        "image_to_text": [0, 0, 1, 2, 3, 4, 4, 5, 6, 7],  # A and B ask for a, F and G for e
    }
    hits = [[1], [0], [1], [0], [0], [0, 1], [0, 0], [0]]  # of text to image at 1, by unit
    drawn = np.random.default_rng(1).integers(8, size=(500, 8))
    means = [np.mean([hit for unit in row for hit in hits[unit]]) for row in drawn]
    entry = measure(features, benchmark, PARAMS, seed=1)["all"]["text_to_image_recall@1"]
    assert (entry["low"], entry["high"]) == pytest.approx(tuple(np.percentile(means, [5, 95])))


def test_the_queries_that_are_shown_are_those_that_were_asked(store: Store) -> None:
    benchmark = read_benchmark(store)
    shown = {row["text_id"][-1]: row for row in details(features_of(benchmark), benchmark)["text_to_image"]}
    assert "".join(shown) == "abcdefghil"
    assert shown["d"]["right"] == ["test/E"] and shown["d"]["top"][:3] == ["test/K", "test/L", "test/E"]
