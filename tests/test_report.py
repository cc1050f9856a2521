"""The report of a small run made by hand: complete, self-contained, honest about misses."""

import io
import json
import re
import shutil
from collections.abc import Generator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from jinja2 import Environment
from jinja2.ext import extract_from_ast
from PIL import Image

from clip_core.config.evaluation import Evaluate
from clip_core.evaluate.benchmark import Benchmark, read_benchmark
from clip_core.evaluate.confusion import confused
from clip_core.evaluate.embed import Features
from clip_core.evaluate.headline import headline
from clip_core.evaluate.measure import compare, details, free_answers, measure
from clip_core.evaluate.probes import probes
from clip_core.evaluate.recall_curves import recall_curves
from clip_core.evaluate.report.before import Before
from clip_core.evaluate.report.bilingual import phrases, say
from clip_core.evaluate.report.charts import Line, chart, ticks
from clip_core.evaluate.report.page import page
from clip_core.evaluate.report.queries import every_nth
from clip_core.evaluate.report.read import Run, read_run
from clip_core.evaluate.slices import slices
from clip_core.evaluate.summary import COLUMNS, headline_table, summary
from tests.conftest import ROOT
from tests.tiny_split import make_split

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PARAMS = Evaluate(num_bootstrap=100, confidence=0.95, prompt_templates=("{}",))
SAME = {"Triton", "R@k", "R@1", "R@5", "R@10", "p50", "p99", "p", "ONNX"}  # in both languages
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no browser: apt-get install -y chromium fonts-wqy-microhei (as root)"
)
SCROLLING = """[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth)
    .map((one) => one.innerText)"""
FAINT = """(() => {  // texts with less contrast to what is behind them than WCAG 2.2 asks for
    const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
    const light = (colour) => { const [r, g, b] = colour.match(/[0-9.]+/g).map((c) => linear(c / 255))
        return 0.2126 * r + 0.7152 * g + 0.0722 * b }
    const behind = (one) => { const colour = getComputedStyle(one).backgroundColor
        return /, 0\\)/.test(colour) ? behind(one.parentElement) : colour }
    const texts = [...document.querySelectorAll('p, td, th, h1, h2, h3, h4, small, summary, .key, .range, a')]
    return texts.filter((one) => {
        const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x)
        return (a + 0.05) / (b + 0.05) < 4.5 }).map((one) => one.outerHTML.slice(0, 99))
})()"""
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
    same = compare(features, features, benchmark, PARAMS, seed=1)
    parity = {"max_feature_difference": dict.fromkeys(("text", "image", "test_texts", "test_images"), 3e-7)}
    files = {
        reports / "test/metrics.json": metrics | {"others": {"stage1": metrics | {"differences": same}}},
        reports / "test/details.json": details(features, benchmark) | examined(features, benchmark),
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
    for tower in ("text", "image"):
        (onnx / f"{tower}.onnx").write_bytes(bytes(2**20))
    before = Before(
        "abc1234",
        "2026-11-01",
        headline({"test": metrics}, 0.95),
        {"seed": ("1", "2"), "data.train_artworks": ("-", json.dumps([*"abcdefghij"] * 20))},
        ["stage2"],
        data=True,
    )
    return read_run(reports, data, onnx, confidence=0.95, before=before)


def examined(features: Features, benchmark: Benchmark) -> dict:
    """What `evaluate` writes into details.json beside the queries."""
    curves = recall_curves(features, benchmark)
    bins = [{"low": i / 4, "high": (i + 1) / 4, "mean_probability": i / 4 + 0.1, "share_matched": i / 3, "count": i}
            for i in range(4)]  # fmt: skip
    return {
        "recall_curves": {"stage1": curves, "stage2": curves},
        "slices": slices(features, benchmark, PARAMS, seed=1),
        "confused": confused(features, benchmark),
        "free": free_answers(["下雨天"], features.images[3:4], features.images, benchmark.image_ids),
        "probes": probes(lambda texts: features.texts[: len(texts)], features, benchmark, PARAMS, seed=1),
        "calibration": {"bins": bins},
    }


def table_of_benchmarks() -> dict:
    """As `make benchmark` leaves it: two models on one benchmark."""
    entry = {"value": 0.5, "low": 0.4, "high": 0.6}
    metrics = dict.fromkeys(
        ("text_to_image_recall@1", "text_to_image_map@r", "image_to_text_recall@1", "mean_recall"), entry
    )
    row = {"benchmark": "muge", "title": "MUGE<i>", "date": "2026-11-29", "contaminated": [], "metrics": metrics}
    row |= {"data": "d1", "templates": ""}
    rows = [
        row | {"model": "a", "weights_id": "1", "contaminated": ["its test"]},
        row | {"model": "b", "weights_id": "2"},
    ]
    apart = {"model": "b", "minus": "a", "benchmark": "muge", "metric": "text_to_image_recall@1", "p_value": 0.25}
    apart |= {"data": "d1", "templates": ""}
    return {"rows": rows, "comparisons": [apart | {"value": -0.02, "low": -0.05, "high": 0.01}]}


def in_english(run: Run) -> str:
    """The page as its switch shows it at first."""
    html = re.sub(r'<bdi lang="en">(.*?)</bdi><bdi lang="zh">.*?</bdi>', r"\1", page(run), flags=re.DOTALL)
    assert "<bdi" not in html
    return html


def test_the_page_is_whole_and_asks_for_nothing_from_outside(run: Run) -> None:
    html, tags = page(run), Tags()
    tags.feed(html)
    assert tags.open == []
    addresses = [attrs[key] for tag, attrs in tags.found for key in ("src", "href", "srcset", "data") if key in attrs]
    assert {address.split(":")[0].split("#")[0] for address in addresses if address} == {"data", "", "../NOTICE"}
    assert not re.search(r"url\(|@import|<script", html)


def test_right_wrong_and_missed_pictures_are_marked(run: Run) -> None:
    html = in_english(run)
    for mark in ("right", "wrong", "missed", "mistaken", "free"):
        assert f'class="hit {mark}"' in html
    assert "missed: at" in html and "found at" in html


def test_a_free_query_shows_the_nearest_pictures_and_calls_none_right_or_wrong(run: Run) -> None:
    (free,) = run.details["free"]
    assert (free["top"][0], free["scores"][:2], len(free["top"])) == ("p03", [1, 0], 10)
    row = in_english(run).partition(">下雨天</h4>")[2].partition("</article>")[0]
    assert row.count('class="hit free"') == 10 and row.count('class="hit ') == 10
    assert "Free queries" not in page(replace(run, details={**run.details, "free": []}))


def test_captions_are_text_and_never_markup(run: Run) -> None:
    assert "名&lt;3&gt;" in page(run)
    assert "<3>" not in page(run)


def test_the_page_says_where_counts_rules_and_metrics_stand(run: Run) -> None:
    html = in_english(run)
    assert "leakage 2" in html and "adds up" in html
    assert "0 of 1 rules passed; 2 of 9 rows refused" in html
    assert "random start" in html and "0123456789abcdef" in html
    assert "test-style" in html and "CC0-1.0" in html
    assert "style that training never saw" in html


def test_the_headline_quotes_the_overall_figures_first(run: Run) -> None:
    html = in_english(run)
    overall = run.metrics["all"]
    assert "12 pictures are the candidates" in html
    assert f"is right in {100 * overall['text_to_image_recall@1']['value']:.1f} of 100 queries" in html
    assert re.findall(r'class="label">[^<]*<span>([^<]*)', html)[:4] == [*["all test pairs"] * 3, "seen concepts"]
    said = headline_table(headline({"test": run.metrics}, 0.95)).splitlines()
    assert [line.split("  ")[1] for line in said[2:5]] == ["all together", "concepts trained on", "concepts never seen"]


def test_a_model_equal_to_the_one_before_is_not_told_apart_and_a_better_one_is_with_its_p_value(run: Run) -> None:
    assert in_english(run).count('class="range">not told apart') == 7
    metrics = json.loads(json.dumps(run.metrics))
    apart = {"value": 0.125, "low": 0.05, "high": 0.2, "p_value": 0.0004}
    metrics["others"]["stage1"]["differences"]["all"]["text_to_image_recall@1"] = apart
    unsure = {"value": 0.125, "low": -0.01, "high": 0.26, "p_value": 0.07}
    metrics["others"]["stage1"]["differences"]["all"]["text_to_image_recall@10"] = unsure
    html = in_english(replace(run, metrics=metrics))
    assert '+12.5</b> <span class="range">+5.0 … +20.0</span></td><td>&lt; 0.001</td>' in html
    assert html.count('class="better"') == 1


def test_the_table_of_benchmarks_stands_where_there_is_one_with_its_marks_and_differences(run: Run) -> None:
    assert "make benchmark" not in page(run)
    table = table_of_benchmarks()
    html = in_english(replace(run, benchmarks=table))
    assert "MUGE&lt;i&gt;" in html and "a † <small>1, 2026-11-29" in html and "<th>b <small>2, 2026" in html
    assert "b minus a" in html and '−2.0</b> <span class="range">−5.0 … +1.0</span></td><td>0.250</td>' in html


def test_benchmarks_of_other_data_or_templates_stand_apart_in_the_report(run: Run) -> None:
    table = table_of_benchmarks()
    table["rows"] += [table["rows"][1] | {"data": "d2"}, table["rows"][1] | {"templates": "cn_clip, 183"}]
    cards = in_english(replace(run, benchmarks=table)).split("MUGE&lt;i&gt;, ")[1:]
    assert [card.partition(" <")[0] for card in cards] == ["d1", "d2", "d1, cn_clip, 183"]
    assert [card.count("<small>2, 2026") for card in cards] == [1, 1, 1]
    assert [card.count("b minus a") for card in cards] == [1, 0, 0]


def test_a_page_full_of_noisy_photographs_is_smaller_than_5_mb(run: Run) -> None:
    noise, encoded = np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(noise).save(encoded, "PNG")
    queries = [
        {"text_id": f"{i:03}", "text": "一" * 60, "group": "seen" if i % 2 else "unseen", "rank": i % 40 + 1,
         "right": [f"{i}-0" if i % 40 == 0 else "far"], "top": [f"{i}-{k}" for k in range(10)], "scores": [0.5] * 10}
        for i in range(400)
    ]  # fmt: skip
    mistake = {"class": "动物", "taken_for": "食物", "count": 9, "of": 90, "pictures": [f"wrong-{k}" for k in range(8)]}
    details = {**run.details, "text_to_image": queries, "confused": [mistake] * 6}
    html = page(replace(run, details=details, read_image=lambda _: encoded.getvalue()))
    assert html.count("<img") > 370 and len(html.encode()) < 5_000_000


def test_the_page_tells_what_changed_since_the_run_before(run: Run) -> None:
    html = in_english(run)
    assert "<code>abc1234</code> of 2026-11-01" in html and "intervals overlap" in html
    assert "<code>seed</code></th><td>1</td><td>2</td>" in html
    assert "Code or packages of these stages: stage2." in html and "The packed pairs are others." in html
    assert "Git holds no run with other figures" in in_english(replace(run, before=None))


def test_calibration_is_drawn_where_it_was_fitted(run: Run) -> None:
    html = in_english(run)
    assert "<th>75–100</th><td>85.00</td><td>100.00</td><td>3</td>" in html and "<th>0–25</th>" not in html
    details = {**run.details, "calibration": {"bins": []}}
    assert 'href="#calibration"' in html and "#calibration" not in in_english(replace(run, details=details))


def test_the_page_of_a_table_claims_no_concepts_no_english_and_no_notice(run: Run) -> None:
    run = without_concepts(run)
    html = in_english(run)
    for claim in (
        "English</b>",
        "oncepts seen",
        "oncepts never",
        "<span>seen",
        "<span>unseen",
        "NOTICE",
        "Chinese name",
    ):
        assert claim not in html
    assert "A Chinese caption is the query" in html and "with <b>Chinese</b> captions" in html
    assert "All test pairs" in html and "CC0-1.0" in html
    said = summary(headline({"test": run.metrics}, 0.95), Path("reports/report.html"))
    assert "concepts" not in said and "all test pairs" in said


def test_the_page_of_data_with_english_captions_says_what_the_warm_up_reads(run: Run) -> None:
    pairs = {split: rows.assign(language="en") for split, rows in run.pairs.items()}
    assert "with <b>English</b> captions unless" in in_english(replace(run, pairs=pairs))


def test_the_page_of_a_finetuned_checkpoint_tells_of_no_training_that_was_not(run: Run) -> None:
    nothing, start = {"loss": [], "recall": []}, {"loss": [], "recall": [(0.0, 0.4)]}
    made = {"made": {"text_tower": "Chinese CLIP 0123456789abcdef"}}
    curves_of = {"init": nothing, "stage1": start, "stage2": run.curves["stage2"]}
    html = in_english(replace(run, curves=curves_of, model={**run.model, **made}))
    assert "Chinese CLIP 0123456789abcdef" in html
    assert "Nothing trains: its figures are those of the start" in html
    assert "warmed up" not in html and "Stage 2 <small>20 steps" in html
    html = in_english(replace(run, curves={"init": nothing, "stage1": start, "stage2": start}))  # recipes/evaluate.yaml
    assert "Nothing trains: these are the weights as they were" in html and "There was none." in html


def test_all_headings_links_and_heads_of_tables_have_their_chinese(run: Run) -> None:
    ablation = json.loads((ROOT / "reports" / "ablation.json").read_text(encoding="utf-8"))
    html = page(replace(run, ablation=ablation))
    heads = "".join(re.findall(r"<(?:nav|thead)>.*?</(?:nav|thead)>", html))
    texts = re.findall(r"<(h[1-3]|figcaption)>(.*?)</\1>", html) + re.findall(r"<(a|th)\b[^>]*>(.*?)</\1>", heads)
    assert len(texts) > 60
    english = {text for _, text in texts if '<bdi lang="zh">' not in text}
    assert {text for text in english if re.search("[A-Za-z]", text)} <= SAME


def test_every_phrase_that_a_template_says_has_its_chinese_and_nothing_else_has() -> None:
    said = set()
    for file in (ROOT / "clip_core/evaluate/report/templates").rglob("*.html"):
        found = [message for _, _, message in extract_from_ast(Environment().parse(file.read_text()))]
        said |= {message if isinstance(message, str) else message[0] for message in found if message}
    assert len(said) > 100
    strings = {text for text in said if isinstance(text, str) and re.search("[A-Za-z]", text)}
    assert strings - SAME <= set(phrases())
    titles_of_arms = ROOT / "stages" / "ablation_arms.py"
    code = "".join(file.read_text() for file in [*(ROOT / "clip_core/evaluate").rglob("*.py"), titles_of_arms])
    code = re.sub(r'"\n\s+"', "", code)  # a string over two lines
    unused = {text for text in phrases() if text not in strings and f'"{text}"' not in code}
    assert unused == {"random start", "33 or more"}  # of model.json, of slices.py


def test_a_mixture_is_counted_by_source_in_both_languages(run: Run) -> None:
    assert "Sources of the mixture" not in page(run)
    found = {"pairs": 1234, "pictures": 56, "left_out_by_weight": 7, "left_out_by_max_pairs": 8}
    counts = dict(run.counts) | {"ingest": {**run.counts["ingest"], "sources": {"my<b>": found}}}
    html = page(replace(run, counts=counts))
    assert "<th>my&lt;b&gt;</th><td>1,234</td><td>56</td><td>7</td><td>8</td>" in html
    for phrase in ("Sources of the mixture", "left out by weight", "left out by cap"):
        assert f'<bdi lang="en">{phrase}</bdi><bdi lang="zh">' in html


def test_what_people_wrote_is_for_both_languages_and_never_markup() -> None:
    text = "seen <b>{}</b>"
    assert say(text).__html__() == "seen &lt;b&gt;{}&lt;/b&gt;"
    assert say("found at {}", text).chinese == "排在第 seen &lt;b&gt;{}&lt;/b&gt;"
    assert say("{} minus {}", say("stage 2"), say("<i>")).chinese == "第二阶段 − &lt;i&gt;"


def test_what_stands_in_the_places_of_a_phrase_may_change_places_in_chinese() -> None:
    assert say("{} texts, {} pictures", "1,240", 166).chinese == "1,240 条文本，166 张图片"
    assert say("every {}th of {} queries, in the order of their ids", 5, 100).chinese.startswith("100 条查询按 id 排列")
    for english, chinese in phrases().items():
        places = re.findall(r"\{(\d)\}", chinese)
        assert sorted(places) == [str(number) for number in range(english.count("{}"))], english


@pytest.fixture(scope="module")
def browser() -> Generator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@needs_browser
def test_the_switch_shows_one_language_at_a_time(run: Run, browser: "Browser", tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page(run), encoding="utf-8")
    tab = browser.new_page()
    tab.set_default_timeout(60_000)
    tab.goto((tmp_path / "report.html").as_uri())
    shown = [tab.inner_text("h1")]
    for language in ("中文", "English"):
        tab.get_by_label(language, exact=True).check()
        shown.append(tab.inner_text("h1"))
    tab.close()
    assert shown == ["Ask in Chinese, find the picture", "用中文提问，找到图片", "Ask in Chinese, find the picture"]


@needs_browser
@pytest.mark.parametrize(("language", "short"), [("English", "en"), ("中文", "zh")])
def test_in_a_browser_nothing_is_wider_than_its_place_and_all_text_can_be_read(
    run: Run, browser: "Browser", language: str, short: str, tmp_path: Path
) -> None:
    ablation = json.loads((ROOT / "reports" / "ablation.json").read_text(encoding="utf-8"))
    (tmp_path / "report.html").write_text(
        page(replace(run, ablation=ablation, benchmarks=table_of_benchmarks())), encoding="utf-8"
    )
    tab = browser.new_page()
    tab.set_default_timeout(60_000)
    tab.goto((tmp_path / "report.html").as_uri())
    tab.get_by_label(language, exact=True).check()
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    for width in (1100, 390):
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert width < 1100 or tab.evaluate(SCROLLING) == []
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            assert tab.evaluate(FAINT) == [], scheme
            name = f"report-{width}-{scheme}-{short}.png"
            tab.screenshot(path=ROOT / "reports" / "screenshots" / name, full_page=True)
    tab.close()


def without_concepts(run: Run) -> Run:
    """The run as the source `table` leaves it."""
    metrics = {group: found for group, found in run.metrics.items() if group not in ("unseen", "zero_shot")}
    queries = [{**query, "group": "seen"} for query in run.details["text_to_image"]]
    table = {"concept_id": None, "family": None, "group": None, "source": "table", "caption_kind": "caption"}
    pairs = {split: rows.assign(seen=True, **table) for split, rows in run.pairs.items()}
    return replace(run, metrics=metrics, details={**run.details, "text_to_image": queries}, pairs=pairs)


def test_the_page_counts_pictures_without_a_text_and_texts_without_a_picture_and_takes_them_for_no_pairs(
    run: Run, tmp_path: Path
) -> None:
    rows = [("p0", "猫", True, None), ("p1", None, True, None), ("p2", None, True, None), (None, "云", True, None)]
    store = make_split(tmp_path / "mixed", rows)
    features = Features(np.eye(2, 4, dtype=np.float32), np.eye(3, 4, dtype=np.float32), [], np.empty((0, 0)))
    metrics = measure(features, read_benchmark(store), PARAMS, seed=1)
    html = in_english(
        replace(
            run,
            metrics=metrics | {"others": {}},
            pairs={"train": store.pairs, "test": store.pairs},
            details={**run.details, "differences": {}},
        )
    )
    assert "1 texts, 3 pictures; 2 of them without a text; 1 more texts without a picture, not asked" in html
    assert "<tr><th>test</th><td>3</td><td>1</td>" in html
    assert 'id="recall"' in html and 'id="models"' not in html  # there is none to compare with
    assert headline({"test": metrics}, 0.95)["test"]["all"]["num_pictures_without_text"] == 2


def test_the_page_says_what_of_the_test_breaks_a_rule_about_quality_and_stays(run: Run) -> None:
    stay = {"test": {"picture_aspect": 3, "caption_length": 1}, "valid": {"picture_side": 7}}
    told = {"break_a_rule_and_stay": stay, "texts_that_left_with_their_pictures": 2}
    html = in_english(replace(run, counts={**run.counts, "validate": {**run.counts["validate"], **told}}))
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
    drawn = chart(say("Loss"), [Line("stage 1", "stage1", [(0, 0.0), (100, 10.0)])], unit="%")
    assert (drawn["lines"][0]["points"], drawn["lines"][0]["last"]) == ("40.0,180.0 346.0,12.0", "10%")
    drawn = chart(
        say("Loss"), [Line("stage 1", "stage1", [(1, 0.0), (10, 5.0), (100, 10.0)])], "%", (1, 100), is_log=True
    )
    assert drawn["lines"][0]["points"] == "40.0,180.0 193.0,96.0 346.0,12.0"


def test_unseen_words_have_a_part_of_the_page_and_a_row_of_the_summary_where_they_were_asked(run: Run) -> None:
    def with_words(metrics: Mapping) -> dict:
        return {**metrics, "unseen_words": metrics["all"]}

    stage1 = run.metrics["others"]["stage1"]
    stage1 = with_words(stage1) | {"differences": with_words(stage1["differences"])}
    metrics = with_words(run.metrics) | {"others": {"stage1": stage1}}
    asked, plain = in_english(replace(run, metrics=metrics)), in_english(run)
    assert "Words never seen" in asked and "Words never seen" not in plain
    assert asked.count("<span>unseen words") > 0 == plain.count("<span>unseen words")
    asked, plain = (summary(headline({"test": one}, 0.95), Path("report.html")) for one in (metrics, run.metrics))
    assert "  words never seen" in asked and "words" not in plain


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
