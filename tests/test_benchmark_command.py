"""`make benchmark`: from files in the reference's layouts to rows of the table, and what is refused on the way."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clip_core.config.section import hash_of
from clip_core.errors import UserError
from clip_core.evaluate.benchmarks.described import SETS
from clip_core.files import atomic_write
from clip_core.inference.predictor import load
from clip_core.inference.prompts import reference_templates, templates_of
from clip_core.model.weights import load_weights
from stages.benchmark import main
from tests.conftest import ROOT, run_in
from tests.made_benchmarks import pictures, write_classes, write_model, write_retrieval
from tests.tiny import tiny_store

PICTURES = dict(zip((30, 4, 100, 7, 55, 12), pictures(0, 6), strict=True))  # in no order, as MUGE's ids are
TEXTS = {9: ("红色的包", [30, 4]), 3: ("一双鞋", [100]), 21: ("雨伞", [7]), 5: ("红色的包", [55])}  # 12 has no text
TABLE = Path("reports", "benchmarks", "table.json")
CLASSES = ["小猫", "红苹果", "没有车"]


def own_sets(place: Path, **changed: str) -> list[str]:
    """The benchmarks' own files, with the numbers of these tests: paths to name."""
    numbers = {
        "muge_valid": {"num_pictures": "6", "num_texts": "4"},
        "flickr30k_cn": {"num_pictures": "6", "num_texts": "4"},
        "caltech_101": {"num_pictures": "6", "num_classes": "3"},
    }
    place.mkdir(exist_ok=True)
    named = []
    for name, values in numbers.items():
        lines = (SETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        wanted = values | changed
        lines = [f"{key}: {wanted[key]}" if (key := line.partition(":")[0]) in wanted else line for line in lines]
        (place / f"{name}.yaml").write_text("\n".join(lines), encoding="utf-8")
        named.append(str(place / f"{name}.yaml"))
    return named


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data in the reference's layouts, two models and params."""
    monkeypatch.chdir(tmp_path)
    write_retrieval(tmp_path / "data" / "MUGE", "valid", TEXTS, PICTURES)
    write_retrieval(tmp_path / "data" / "Flickr30k-CN", "test", TEXTS, PICTURES)
    write_classes(tmp_path / "data" / "caltech-101", CLASSES, [pictures(10 * i, i + 1) for i in range(3)])
    for seed in (1, 2):
        write_model(tmp_path / f"model{seed}", seed)
    params = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("num_bootstrap: 2000", "num_bootstrap: 100")
    (tmp_path / "params.yaml").write_text(params, encoding="utf-8")
    return tmp_path


def says_it_was_made(model: str, **of: str) -> None:
    file = Path(model, "model.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    content["made"] |= of
    file.write_text(json.dumps(content), encoding="utf-8")


def table() -> dict:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def test_two_models_on_three_benchmarks_make_six_rows_that_say_what_they_are_made_of(place: Path) -> None:
    (place / "packed").mkdir()
    tiny_store(place / "packed" / "train").close()
    main(tuple(own_sets(place / "sets")), (Path("model1"), Path("model2")), Path("data"), Path("packed"))
    found = table()
    assert [(row["model"], row["benchmark"]) for row in found["rows"]] == [
        (model, name) for model in ("model1", "model2") for name in ("muge_valid", "flickr30k_cn", "caltech_101")
    ]
    for row in found["rows"]:
        assert {"weights_id", "data", "params", "versions", "commit", "date", "made"} <= row.keys()
        for name, entry in row["metrics"].items():
            assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= (6 if "rank" in name else 1)
        assert row["overlap"]["pictures_near"] == 0 and row["contaminated"] == []
    assert len({row["data"] for row in found["rows"]}) == 3
    compared = {(row["benchmark"], row["metric"], row["minus"], row["model"]) for row in found["comparisons"]}
    ways = ("text_to_image_mean_recall", "image_to_text_mean_recall")
    expected = [("muge_valid", ways[0]), *(("flickr30k_cn", way) for way in ways), ("caltech_101", "mean_per_class")]
    assert compared == {(*one, "model1", "model2") for one in expected}
    page = Path("reports/benchmarks/table.md").read_text(encoding="utf-8")
    assert "## Flickr30K-CN test (`flickr30k_cn`)" in page and "class names that negate" in page
    main(tuple(own_sets(place / "sets")), (Path("model2"),), Path("data"))
    assert len(table()["rows"]) == 6  # in the place of its like


def test_the_figures_are_those_of_the_files(place: Path) -> None:
    muge, _, caltech = own_sets(place / "sets")
    main((muge, caltech), (Path("model1"),), place / "data")
    of_muge, of_classes = (row["metrics"] for row in table()["rows"])
    model = load("model1", device="cpu")
    images = dict(zip(PICTURES, model.encode_images(list(PICTURES.values())), strict=True))
    hits = []
    for text, right in TEXTS.values():
        scores = {image_id: float(model.encode_texts([text])[0] @ image) for image_id, image in images.items()}
        hits.append(max(scores, key=scores.__getitem__) in right)
    assert of_muge["text_to_image_recall@1"]["value"] == np.mean(hits)
    classes = []
    for name in CLASSES:
        prompts = model.encode_texts([template.replace("{}", name) for template in templates_of("objects")])
        classes.append(prompts.mean(axis=0) / np.linalg.norm(prompts.mean(axis=0)))
    means = []
    for i in range(3):
        scores = model.encode_images(pictures(10 * i, i + 1)) @ np.array(classes).T
        means.append(np.mean(scores.argmax(axis=1) == i))
    assert of_classes["mean_per_class"]["value"] == pytest.approx(np.mean(means))


def test_data_may_be_the_benchmark_s_own_folder_and_templates_the_reference_s(place: Path) -> None:
    *_, caltech = own_sets(place / "sets")
    main((caltech,), (Path("model1"),), Path("data/caltech-101"), templates="cn_clip")
    (row,) = table()["rows"]
    assert row["templates"] == "cn_clip, 183"
    (file,) = Path("reports/benchmarks/templates").glob("caltech_101-*.json")
    assert len(json.loads(file.read_text(encoding="utf-8"))) == 183


def folder_of_pictures(place: Path) -> str:
    """A benchmark of the user's own in `data/mine`: six pictures, five of them with two texts; the path to name."""
    for i, picture in enumerate(PICTURES.values()):
        (place / "data" / "mine" / f"{i}.png").parent.mkdir(exist_ok=True)
        (place / "data" / "mine" / f"{i}.png").write_bytes(picture)
        if i:
            (place / "data" / "mine" / f"{i}.txt").write_text(f"第{i}张图\n第{i}个", encoding="utf-8")
    lines = {"source": "folder", "files": "null", "folder": "mine", "num_pictures": "null", "num_texts": "null"}
    own_sets(place / "sets", **lines)
    return str((place / "sets" / "flickr30k_cn.yaml").rename(place / "mine.yaml"))


def test_a_folder_of_pictures_with_texts_is_a_benchmark_without_splits(place: Path) -> None:
    main((folder_of_pictures(place),), (Path("model1"),), Path("data"))
    (row,) = table()["rows"]
    assert row["sizes"] == {"pictures": 6, "texts": 10}


@pytest.mark.parametrize("content", [b"", "\ufeff\u3000\n\n".encode()])
def test_a_picture_whose_text_is_empty_is_refused_as_an_empty_query_is(place: Path, content: bytes) -> None:
    mine = folder_of_pictures(place)
    (place / "data" / "mine" / "3.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"^mine: data/mine/3\.txt, line 1: text_blank"):
        main((mine,), (Path("model1"),), Path("data"))


def test_the_page_s_classes_of_one_s_own_are_measured_as_they_are_written(place: Path) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (place / "animals.yaml").write_text(page.split("```yaml\n")[2].split("```")[0], encoding="utf-8")
    write_classes(place / "data" / "animals", CLASSES, [pictures(10 * i, 2) for i in range(3)])
    for templates in ("ours", "cn_clip"):
        main(("animals.yaml",), (Path("model1"),), Path("data"), templates=templates)
    assert [(row["title"], row["templates"]) for row in table()["rows"]] == [
        ("My animals", f"ours, {len(templates_of('pets'))}"),
        ("My animals", f"cn_clip, {len(reference_templates('openai'))}"),
    ]
    for lists in (templates_of, reference_templates):
        with pytest.raises(UserError) as error:
            lists("none of them")
        assert str(error.value).partition("There are ")[2] in page.replace("\n", " ")


def test_rows_of_other_data_stand_apart_and_differences_go_with_the_figures_they_are_of(place: Path) -> None:
    mine = folder_of_pictures(place)
    main((mine,), (Path("model1"), Path("model2")), Path("data"))
    before = table()
    main((mine,), (Path("model2"),), Path("data"))
    assert table()["comparisons"] == before["comparisons"] and len(before["comparisons"]) == 2  # the same figures
    (place / "data" / "mine" / "1.txt").write_text("第1张图", encoding="utf-8")
    main((mine,), (Path("model2"),), Path("data"))
    old, new = table()["rows"]
    assert (old["sizes"]["texts"], new["sizes"]["texts"], table()["comparisons"]) == (10, 9, [])
    sections = Path("reports/benchmarks/table.md").read_text(encoding="utf-8").split("## ")[1:]
    for row, section in zip((old, new), sections, strict=True):
        assert f"data {row['data']}\n" in section and re.findall(r"^\| (model\d)", section, re.M) == [row["model"]]
        assert section.count("| chance |") == 1


def test_rows_of_other_templates_stand_apart_and_name_them(place: Path) -> None:
    *_, caltech = own_sets(place / "sets")
    for templates in ("ours", "cn_clip"):
        main((caltech,), (Path("model1"), Path("model2")), Path("data"), templates=templates)
    assert [row["templates"].split(",")[0] for row in table()["comparisons"]] == ["ours", "cn_clip"]
    ours, theirs = Path("reports/benchmarks/table.md").read_text(encoding="utf-8").split("## ")[1:]
    for section, of in ((ours, ""), (theirs, ", templates cn_clip, 183")):
        assert re.findall(r"^\| (model.*?) \|", section, re.M) == [f"model1{of}", f"model2{of}"]
        assert section.count(f"- mean per class{of}: model2 − model1 = ") == 1


def test_figures_of_a_model_trained_on_its_pictures_are_marked(place: Path) -> None:
    (place / "packed").mkdir()
    with tiny_store(place / "packed" / "train") as store:
        stolen = {i: store.image_bytes(i) for i in range(4)}
        write_retrieval(place / "data" / "MUGE", "valid", {1: ("红色圆形", [1]), 2: ("小狗", [0])}, stolen)
        trained_on = hash_of(store.manifest)
    says_it_was_made("model2", data=trained_on)
    muge, *_ = own_sets(place / "sets", num_pictures="4", num_texts="2")
    main((muge,), (Path("model1"), Path("model2")), Path("data"), Path("packed"))
    other, trained = table()["rows"]
    assert other["overlap"] == trained["overlap"]
    assert (other["overlap"]["pictures_exact"], other["overlap"]["texts_exact"]) == (4, 1)
    assert other["contaminated"] == []
    assert trained["contaminated"] == ["contaminated: the training data have 4 of its 4 pictures (4 byte by byte)"]
    (line,) = re.findall(r"^\| model2 † .*$", Path("reports/benchmarks/table.md").read_text("utf-8"), re.MULTILINE)
    assert line.endswith("| 4 (4) of 4 pictures, 1 (1) of 2 texts |")
    main((muge,), (Path("model2"),), Path("data"))  # without TRAIN
    again = table()["rows"][-1]
    assert (again["overlap"], again["contaminated"]) == (trained["overlap"], trained["contaminated"])
    write_retrieval(place / "data" / "MUGE", "valid", {1: ("红色圆形", [1]), 2: ("小猫", [0])}, stolen)
    main((muge,), (Path("model2"),), Path("data"))  # other data
    again = table()["rows"][-1]
    assert (again["overlap"], again["contaminated"]) == (None, [])


def test_the_paper_s_marks_are_for_released_weights_and_what_trained_from_them(place: Path) -> None:
    says_it_was_made("model1", text_tower="imported with the image tower")
    _, flickr, _ = own_sets(place / "sets", contaminated="said by the paper")
    main((flickr,), (Path("model1"), Path("model2")), Path("data"))
    assert [row["contaminated"] for row in table()["rows"]] == [["contaminated: said by the paper"], []]


def test_without_answers_there_is_a_submission_and_no_figure(place: Path) -> None:
    write_retrieval(MUGE, "valid", {7: ("小猫", []), 3: ("红苹果", []), 9: ("鞋", []), 4: ("包", [])}, PICTURES)
    muge, _, caltech = own_sets(place / "sets")
    main((muge, caltech), (Path("model1"),), Path("data"), submit=True)
    assert [row["benchmark"] for row in table()["rows"]] == ["caltech_101"]
    of_muge, of_caltech = (next(TABLE.parent.glob(f"submissions/{name}-*")) for name in ("muge_valid", "caltech_101"))
    model = load("model1", device="cpu")
    images = model.encode_images(list(PICTURES.values()))
    asked = [json.loads(line) for line in of_muge.read_text(encoding="utf-8").splitlines()]
    texts = {7: "小猫", 3: "红苹果", 9: "鞋", 4: "包"}
    assert {line["text_id"] for line in asked} == set(texts)
    for line in asked:
        scores = images @ model.encode_texts([texts[line["text_id"]]])[0]
        assert line["image_ids"][0] == list(PICTURES)[int(scores.argmax())]
        assert sorted(line["image_ids"]) == sorted(PICTURES)
    found = json.loads(of_caltech.read_text(encoding="utf-8"))
    (shares,) = found["predictions"]
    assert found["dataset_name"] == "caltech-101" and np.shape(shares) == (6, 3)
    features = model.encode_images([one for i in range(3) for one in pictures(10 * i, i + 1)])
    prompts = [model.encode_texts([t.replace("{}", name) for t in templates_of("objects")]) for name in CLASSES]
    classes = np.array([of.mean(axis=0) / np.linalg.norm(of.mean(axis=0)) for of in prompts])
    odds = np.exp(model.logit_scale * features @ classes.T)
    expected = (odds / odds.sum(axis=1, keepdims=True))[::-1]  # index.json turns the order round
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert found["num_params"] == sum(parameter.numel() for parameter in load_weights(Path("model1")).parameters())


MUGE = Path("data", "MUGE")


def line(text_id: object, text: str, image_ids: list) -> str:
    return json.dumps({"text_id": text_id, "text": text, "image_ids": image_ids}) + "\n"


def one_more_line(content: str) -> Callable[[], object]:
    file = MUGE / "valid_texts.jsonl"
    return lambda: file.write_text(file.read_text(encoding="utf-8") + content, encoding="utf-8")


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "no folder": (lambda: shutil.rmtree(MUGE), r"muge_valid: data/MUGE: no such folder"),
    "no pictures": (lambda: (MUGE / "valid_imgs.tsv").unlink(), r"valid_imgs\.tsv: no such file"),
    "an empty query": (one_more_line(line(8, " ", [30])), r"valid_texts\.jsonl, line 5: text_blank"),
    "a text twice": (one_more_line(line(9, "又一个", [30])), r"valid_texts\.jsonl, line 5: text_id_repeated"),
    "a picture that is not there": (one_more_line(line(8, "塔", [31])), r"valid_texts\.jsonl, line 5: image_missing"),
    "a text too many": (one_more_line(line(8, "塔", [30])), r"5 texts, but the benchmark has 4"),
    "no answers": (
        lambda: write_retrieval(MUGE, "valid", {i: (f"包{i}", []) for i in range(4)}, PICTURES),
        r"muge_valid: no text names a picture: .*SUBMIT=1",
    ),
    "a picture that can not be decoded": (
        lambda: write_retrieval(MUGE, "valid", TEXTS, PICTURES | {7: b"no picture"}),
        r"picture valid/7: .*Take it from the benchmark's source again",
    ),
    "a table that is none": (lambda: atomic_write(TABLE, "[]"), r"table\.json: no table of benchmarks"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_with_the_data_is_said_before_any_figure(place: Path, mistake: str) -> None:
    muge, *_ = own_sets(place / "sets")
    make, message = MISTAKES[mistake]
    make()
    with pytest.raises(UserError, match=message):
        main((muge,), (Path("model1"),), Path("data"))


def test_the_command_ends_with_2_and_the_message_alone(place: Path) -> None:
    command = ("env", f"PYTHONPATH={ROOT}", "python", "-m", "stages.benchmark", "--models", "model1", "--names")
    result = run_in(place, *command, "caltech_101", "--data", "data", check=False)
    assert result.returncode == 2
    assert result.stdout.strip() == (
        "error: caltech_101: data/caltech-101: 3 classes, but the benchmark has 101. Take all of it from its source "
        "again; figures on a part are none of the benchmark (a YAML file of your own may name another number)."
    )
