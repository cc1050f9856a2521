"""The report of a small run made by hand: complete, self-contained, honest about misses."""

import json
import re
import shutil
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from clip_core.config.evaluation import Evaluate
from clip_core.evaluate.benchmark import read_benchmark
from clip_core.evaluate.embed import Features
from clip_core.evaluate.headline import headline
from clip_core.evaluate.measure import details, measure
from clip_core.evaluate.report.charts import Line, curves, ticks
from clip_core.evaluate.report.chinese import bilingual, chinese_of
from clip_core.evaluate.report.page import page
from clip_core.evaluate.report.queries import every_nth
from clip_core.evaluate.report.read import read_run
from clip_core.evaluate.report.sections import Run
from clip_core.evaluate.summary import COLUMNS, headline_table, summary
from tests.conftest import ROOT
from tests.tiny_split import make_split

PARAMS = Evaluate(num_bootstrap=100, confidence=0.95, prompt_templates=("{}",))
SAME = {"Triton", "R@k", "p50", "p99", "top-1, %"}  # in both languages
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
NAMES = [f"名<{i}>" for i in range(12)]  # a careless page would take these for tags


class Tags(HTMLParser):
    """Every tag with its attributes, and whether the tags that must be closed are."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "input", "line", "circle", "polyline"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The files of a run as the stages write them, read back."""
    data, reports, onnx = tmp_path / "data", tmp_path / "reports", tmp_path / "onnx"
    (data / "packed").mkdir(parents=True)
    rows = [(f"p{i:02}", name, i < 8, "动物" if i % 2 else "食物") for i, name in enumerate(NAMES)]
    for split in ("train", "valid", "test"):
        store = make_split(data / "packed" / split, rows, source=f"emoji/{split}-style")
    eye = np.eye(12, dtype=np.float32)
    features = Features(np.roll(eye, 1, axis=0)[:, ::-1], eye, ["动物", "食物"], eye[:2])
    benchmark = read_benchmark(store)
    metrics = measure(features, benchmark, PARAMS, seed=1)
    parity = {"max_feature_difference": dict.fromkeys(("text", "image", "test_texts", "test_images"), 3e-7)}
    files = {
        reports / "test/metrics.json": metrics | {"others": {"stage1": metrics}},
        reports / "test/details.json": details(features, benchmark),
        reports / "validation/validation.json": {
            "read": 9, "rejected": 2,
            "rules": [{"name": "caption_given", "description": "not blank", "allowed": "", "about": "row",
                       "passed": False, "bad_rows": 2, "observed": None}],
        },
        reports / "deploy.json": {
            "release": "0123456789abcdef",
            "recall": {"text_to_image_recall@1": {"served": 0.5, "offline": 0.5, "level_queries": 0}},
            "golden_max_difference": {"scores": 2e-7},
            "versions": {"tritonserver": "2.51.0"},
            "latency_ms": {"clip_text": {"p50": 1.5, "p99": 9.5}},
        },
        onnx / "model.json": {
            "architecture": {"image_tower": {"name": "resnet10t"}, "embed_dim": 12, "image_size": 48,
                             "text_tower": {"name": "bert"}},
            "made": {"text_tower": "random start"},
        },
        onnx / "parity.json": parity
        | {"num_texts": 12, "num_images": 12, "top10": {"num_queries": 12, "different": 0}},
        **{data / folder / "counts.json": {"read": 9, "kept": 7, "rejected": 2, "by_reason": {"leakage": 2}}
           for folder in ("raw", "valid", "curated")},
    }  # fmt: skip
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    for stage in ("init", "stage1", "stage2"):
        (reports / stage).mkdir()
        (reports / stage / "train.csv").write_text("step,loss,lr\n10,4.5,0.1\n20,3.5,0.1\n")
        if stage != "init":
            (reports / stage / "validation.csv").write_text("step,text_to_image_mean_recall\n20,0.25\n")
    return read_run(reports, data, onnx, confidence=0.95)


def test_the_page_is_whole_and_asks_for_nothing_from_outside(run: Run) -> None:
    html, tags = page(run), Tags()
    tags.feed(html)
    assert tags.open == []
    addresses = [attrs[key] for tag, attrs in tags.found for key in ("src", "href", "srcset", "data") if key in attrs]
    assert {address.split(":")[0].split("#")[0] for address in addresses if address} == {"data", "", "../NOTICE"}
    assert not re.search(r"url\(|@import|<script", html)


def test_right_wrong_and_missed_pictures_are_marked(run: Run) -> None:
    html = page(run)
    for mark in ("right", "wrong", "missed"):
        assert f'class="hit {mark}"' in html
    assert "missed" in html and "found at" in html


def test_captions_are_text_and_never_markup(run: Run) -> None:
    assert "名&lt;3&gt;" in page(run)
    assert "<3>" not in page(run)


def test_the_page_says_where_counts_rules_and_metrics_stand(run: Run) -> None:
    html = page(run)
    assert "leakage 2" in html and "adds up" in html
    assert "0 of 1 rules passed; 2 of 9 rows refused" in html
    assert "random start" in html and "0123456789abcdef" in html
    assert "test-style" in html and "CC0-1.0" in html
    assert "style that training never saw" in html


def test_the_page_of_a_table_claims_no_concepts_no_english_and_no_notice(run: Run) -> None:
    run = without_concepts(run)
    html = page(run)
    for claim in ("English</b>", "oncepts seen", "oncepts never", "<span>seen", "NOTICE", "Chinese name"):
        assert claim not in html
    assert "A Chinese caption is the query" in html and "with <b>Chinese</b> captions" in html
    assert "All test pairs" in html and "CC0-1.0" in html
    said = summary(headline({"test": run.metrics}, 0.95), Path("reports/report.html"))
    assert "concepts" not in said and "all test pairs" in said


def test_the_page_of_data_with_english_captions_says_what_the_warm_up_reads(run: Run) -> None:
    pairs = {split: rows.assign(language="en") for split, rows in run.pairs.items()}
    assert "with <b>English</b> captions unless" in page(replace(run, pairs=pairs))


def test_the_page_of_a_finetuned_checkpoint_tells_of_no_training_that_was_not(run: Run) -> None:
    nothing, start = {"loss": [], "recall": []}, {"loss": [], "recall": [(0.0, 0.4)]}
    made = {"made": {"text_tower": "Chinese CLIP 0123456789abcdef"}}
    curves_of = {"init": nothing, "stage1": start, "stage2": run.curves["stage2"]}
    html = page(replace(run, curves=curves_of, model={**run.model, **made}))
    assert "Chinese CLIP 0123456789abcdef" in html
    assert "Nothing trains: its figures are those of the start" in html
    assert "warmed up" not in html and "Stage 2 <small>20 steps" in html
    html = page(replace(run, curves={"init": nothing, "stage1": start, "stage2": start}))  # recipes/evaluate.yaml
    assert "Nothing trains: these are the weights as they were" in html and "There was none." in html


def test_all_headings_links_and_heads_of_tables_have_their_chinese(run: Run) -> None:
    ablation = json.loads((ROOT / "reports" / "ablation.json").read_text(encoding="utf-8"))
    html = page(replace(run, ablation=ablation))
    heads = "".join(re.findall(r"<(?:nav|thead)>.*?</(?:nav|thead)>", html))
    texts = re.findall(r"<(h[1-3]|figcaption)>(.*?)</\1>", html) + re.findall(r"<(a|th)\b[^>]*>(.*?)</\1>", heads)
    assert len(texts) > 60
    english = {text for _, text in texts if '<bdi lang="zh">' not in text}
    assert {text for text in english if re.search("[A-Za-z]", text)} <= SAME


def test_a_mixture_is_counted_by_source_in_both_languages(run: Run) -> None:
    assert "Sources of the mixture" not in page(run)
    found = {"pairs": 1234, "pictures": 56, "left_out_by_weight": 7, "left_out_by_max_pairs": 8}
    counts = dict(run.counts) | {"ingest": {**run.counts["ingest"], "sources": {"my<b>": found}}}
    html = page(replace(run, counts=counts))
    assert "<th>my&lt;b&gt;</th><td>1,234</td><td>56</td><td>7</td><td>8</td>" in html
    for phrase in ("Sources of the mixture", "left out by weight", "left out by cap"):
        assert f'<bdi lang="en">{phrase}</bdi><bdi lang="zh">' in html


def test_the_chinese_stands_beside_the_english_and_changes_nothing_of_it(run: Run) -> None:
    html = page(run)
    english = re.sub(r'<bdi lang="en">(.*?)</bdi><bdi lang="zh">.*?</bdi>', r"\1", html, flags=re.DOTALL)
    assert "bdi" not in english.partition("</style>")[2]
    assert bilingual(english) == html
    for query in run.queries:  # what people wrote is for both
        assert chinese_of(query["text"]) is None


def test_what_stands_in_the_places_of_a_phrase_is_told_in_chinese_too() -> None:
    assert chinese_of("1,240 texts, 166 pictures") == "1,240 条文本，166 张图片"
    assert chinese_of("Start <small>600 steps</small>") == "起点 <small>600 步</small>"
    assert chinese_of("every 5th of 100 queries, in the order of their ids") == "100 条查询按 id 排列，每 5 条取一条"
    table = (ROOT / "clip_core" / "evaluate" / "report" / "chinese.toml").read_text(encoding="utf-8")
    for english, chinese in tomllib.loads(table).items():
        places = re.findall(r"\{(\d)\}", chinese)
        assert sorted(places) == [str(number) for number in range(english.count("{}"))], english


@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install -y chromium fonts-wqy-microhei (as root)")
def test_the_switch_shows_one_language_at_a_time(run: Run, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    (tmp_path / "report.html").write_text(page(run), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto((tmp_path / "report.html").as_uri())
        shown = [tab.inner_text("h1")]
        for language in ("中文", "English"):
            tab.get_by_label(language, exact=True).check()
            shown.append(tab.inner_text("h1"))
        browser.close()
    assert shown == ["Ask in Chinese, find the picture", "用中文提问，找到图片", "Ask in Chinese, find the picture"]


def without_concepts(run: Run) -> Run:
    """The run as the source `table` leaves it."""
    metrics = {group: found for group, found in run.metrics.items() if group not in ("unseen", "zero_shot")}
    queries = [{**query, "group": "seen"} for query in run.queries]
    table = {"concept_id": None, "family": None, "group": None, "source": "table", "caption_kind": "caption"}
    pairs = {split: rows.assign(seen=True, **table) for split, rows in run.pairs.items()}
    return replace(run, metrics=metrics, queries=queries, pairs=pairs)


def test_the_page_counts_pictures_without_a_text_and_texts_without_a_picture_and_takes_them_for_no_pairs(
    run: Run, tmp_path: Path
) -> None:
    rows = [("p0", "猫", True, None), ("p1", None, True, None), ("p2", None, True, None), (None, "云", True, None)]
    store = make_split(tmp_path / "mixed", rows)
    features = Features(np.eye(2, 4, dtype=np.float32), np.eye(3, 4, dtype=np.float32), [], np.empty((0, 0)))
    metrics = measure(features, read_benchmark(store), PARAMS, seed=1)
    html = page(replace(run, metrics=metrics | {"others": {}}, pairs={"train": store.pairs, "test": store.pairs}))
    assert "1 texts, 3 pictures; 2 of them without a text; 1 more texts without a picture, not asked" in html
    assert "<tr><th>test</th><td>3</td><td>1</td>" in html
    assert headline({"test": metrics}, 0.95)["test"]["all"]["num_pictures_without_text"] == 2


def test_the_page_says_what_of_the_test_breaks_a_rule_about_quality_and_stays(run: Run) -> None:
    stay = {"test": {"picture_aspect": 3, "caption_length": 1}, "valid": {"picture_side": 7}}
    told = {"break_a_rule_and_stay": stay, "texts_that_left_with_their_pictures": 2}
    html = page(replace(run, counts={**run.counts, "validate": {**run.counts["validate"], **told}}))
    assert "these break a rule: picture_aspect 3, caption_length 1." in html
    assert "2 texts of validation and test left" in html
    assert "for its quality" not in page(run)


def test_the_shown_queries_stand_at_equal_steps() -> None:
    queries = [{"text_id": f"{i:03}"} for i in reversed(range(100))]
    assert [query["text_id"] for query in every_nth(queries, 4)] == ["012", "037", "062", "087"]
    assert len(every_nth(queries[:3], 10)) == 3


def test_ticks_are_round_and_hold_the_curve() -> None:
    assert ticks(0, 600) == [0, 200, 400, 600]
    for low, high in [(0.93, 4.87), (0, 0.036), (2.0, 2.0), (0, 1_000_000)]:
        found = ticks(low, high)
        assert found[0] <= low and high <= found[-1] and 2 <= len(found) <= 7


def test_a_curve_ends_where_its_last_value_says() -> None:
    svg = curves([Line("stage 1", "stage1", [(0, 0.0), (100, 10.0)])], "loss", from_zero=True)
    assert 'points="40.0,180.0 346.0,12.0"' in svg


def test_the_headline_is_rounded_and_holds_no_earlier_model(run: Run) -> None:
    found = headline({"test": run.metrics}, confidence=0.95)
    assert set(found["test"]) == {"seen", "unseen", "all", "zero_shot"}
    assert found["test"]["seen"]["text_to_image_recall@10"]["chance"] == 1.0
    assert json.dumps(found) == json.dumps(headline({"test": run.metrics}, confidence=0.95))


def test_the_summary_ends_with_the_two_commands_to_go_on_with(run: Run) -> None:
    lines = summary(headline({"test": run.metrics}, 0.95), Path("reports/report.html")).splitlines()
    assert "95 % interval" in lines[0]
    assert lines[-3].split()[-1] == "reports/report.html"
    wide = {"value": 1.0, "low": 1.0, "high": 1.0, "chance": 1.0}
    groups = {**dict.fromkeys(COLUMNS, wide), "num_queries": 1, "num_candidates": 1}
    assert headline_table({"confidence": 0.95, "test": {"all": groups}}).count("100.0 [100.0-100.0] (100.0)  ") == 2
    assert "make serve" in lines[-2] and "python -m flows.pipeline" in lines[-1]
