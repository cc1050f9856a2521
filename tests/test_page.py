"""The page, in a real browser: pictures in the order of `clip_search`, and nothing from outside."""

import re
import shutil
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import pytest

from clip_core.serve.queries import search
from clip_core.serve.triton import connect
from tests.conftest import ROOT
from tests.page_server import Supervised, page_of
from tests.tiny_release import Release

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from clip_core.serve.triton import Server

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
CAT = "一只猫"  # the first example
CIRCLE, SQUARE = "红色圆形", "一张蓝色方块的图片"
# The page's policy forbids eval, on which playwright's wait_for_function rests; decode() ends when a picture is there.
LOADED = "Promise.all([...document.querySelectorAll('#hits img')].map((image) => image.decode()))"

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no browser: apt-get install -y chromium fonts-wqy-microhei (as root)"
)


@pytest.fixture(scope="module")
def url(triton: "Server", release: Release, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of the page."""
    releases = tmp_path_factory.mktemp("releases")
    (releases / release.id).symlink_to(release.folder)
    with page_of(Supervised(triton.address), releases) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def tab(url: str) -> Generator["Page"]:
    """A browser's tab that can reach the page's server and nothing else."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1100, "height": 900}, locale="zh-CN")
        tab.set_default_timeout(60_000)
        yield tab
        browser.close()


@pytest.fixture
def page(tab: "Page", url: str) -> Generator["Page"]:
    """The page, freshly opened; requests to elsewhere are blocked, and none was made."""
    elsewhere: list[str] = []

    def block(route) -> None:
        elsewhere.append(route.request.url)
        route.abort()

    tab.route(lambda address: not address.startswith((url, "data:")), block)
    tab.goto(url)
    yield tab
    tab.unroute_all()
    assert elsewhere == []


def message_with(page: "Page", text: str) -> None:
    """Waits until the page's message has `text` in it."""
    page.locator("#message", has_text=text).wait_for()


def ask(page: "Page", text: str) -> list[str]:
    """Types the text, presses Enter and gives the ids of the pictures that are shown then."""
    page.fill("#query", text)
    page.press("#query", "Enter")
    message_with(page, f"“{text}”：")
    page.evaluate(LOADED)
    return page.eval_on_selector_all("#hits li", "items => items.map((item) => item.dataset.imageId)")


def test_the_pictures_shown_are_those_of_clip_search(page: "Page", triton: "Server") -> None:
    with closing(connect(triton.address)) as client:
        found = search(client, [CIRCLE, SQUARE])
    for text, answer in zip([CIRCLE, SQUARE], found, strict=True):
        assert ask(page, text) == answer.ids
        shown = page.eval_on_selector_all("figcaption small", "scores => scores.map((score) => +score.textContent)")
        assert shown == pytest.approx(answer.scores.tolist(), abs=6e-4)
        assert page.inner_text("#message").endswith(f"模型版本 {answer.release}")


def test_every_picture_has_loaded_and_a_second_answer_replaces_them(page: "Page") -> None:
    first = ask(page, CIRCLE)
    assert page.evaluate("[...document.querySelectorAll('#hits img')].every((image) => image.naturalWidth > 0)")
    assert page.locator("#hits img").count() == 10
    (ROOT / "reports").mkdir(exist_ok=True)
    page.screenshot(path=ROOT / "reports" / "page.png")

    def reverse(route: Any) -> None:  # random weights find the same for every text
        answer = route.fetch().json()
        route.fulfill(json=answer | {"hits": answer["hits"][::-1]})

    page.route("**/api/search*", reverse)
    assert ask(page, SQUARE) == first[::-1]
    assert page.evaluate("[...document.querySelectorAll('#hits img')].every((image) => image.naturalWidth > 0)")


def test_an_example_is_a_query(page: "Page") -> None:
    page.locator("#examples button").first.click()
    page.wait_for_selector("#hits img")
    assert page.input_value("#query") == CAT


def test_an_address_with_a_query_shows_its_pictures(page: "Page", url: str) -> None:
    page.goto(f"{url}/?q={CIRCLE}")
    page.wait_for_selector("#hits img")
    assert page.input_value("#query") == CIRCLE


def test_an_empty_query_is_answered_by_a_hint(page: "Page") -> None:
    ask(page, CAT)
    page.fill("#query", "  ")
    page.press("#query", "Enter")
    message_with(page, "请先写下要找的内容。")
    assert page.locator("#hits li").count() == 0


def choose(page: "Page", release: Release, place: int) -> str:
    """Chooses a picture of the store, whose id comes back."""
    data = release.store.image_bytes(place)
    page.set_input_files("#file", {"name": "any", "mimeType": "image/png", "buffer": data})
    return release.store.image_ids[place]


def shown_ids(page: "Page") -> list[str]:
    return page.eval_on_selector_all("#hits li", "items => items.map((item) => item.dataset.imageId)")


def test_a_picture_finds_what_resembles_it_alone_and_with_a_text(page: "Page", release: Release) -> None:
    image_id = choose(page, release, 7)
    message_with(page, "“图片”：10 张图片")
    assert shown_ids(page)[0] == image_id
    assert page.locator("#hits small").first.inner_text() == "1.000"
    page.evaluate(LOADED)
    ask_path = page.expect_request(lambda request: "v1/search" in request.url)
    page.fill("#query", CIRCLE)
    with ask_path as asked:
        page.press("#query", "Enter")
    assert parse_qs(urlsplit(asked.value.url).query)["question"] == [f'{{"limit":10,"text":"{CIRCLE}"}}']
    message_with(page, f"“图片 + {CIRCLE}”：10 张图片")
    page.click("#remove")
    assert page.locator("#given").is_hidden()
    assert len(ask(page, CIRCLE)) == 10  # a text alone again


def test_a_picture_is_judged_by_labels_of_ones_own(page: "Page", url: str, release: Release) -> None:
    choose(page, release, 3)
    message_with(page, "“图片”：")
    page.press("#names", "Enter")
    message_with(page, "用逗号分开")
    page.fill("#names", "红色圆形，蓝色方块、 猫;")
    page.press("#names", "Enter")
    message_with(page, f"模型版本 {release.id}")
    question = {"question": '{"labels": ["红色圆形", "蓝色方块", "猫"]}'}
    headers = {"Content-Type": "image/png"}
    answer = httpx.post(
        f"{url}/v1/classify", params=question, content=release.store.image_bytes(3), headers=headers, trust_env=False
    ).json()
    rows = page.eval_on_selector_all("#labels li", "items => items.map((item) => item.innerText.split(/\\s+/))")
    assert rows == [[one["label"], f"{one['score']:.3f}"] for one in answer["labels"]]
    assert page.locator("#hits li").count() == 0


def test_what_is_no_picture_is_said_so(page: "Page") -> None:
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"none"})
    message_with(page, "这张图片无法读取")


def test_on_a_phone_nothing_is_wider_than_the_screen(page: "Page", release: Release) -> None:
    size = page.viewport_size
    page.set_viewport_size({"width": 360, "height": 740})
    try:
        choose(page, release, 3)
        message_with(page, "“图片”：")
        page.fill("#names", "红色圆形，蓝色方块")
        page.press("#names", "Enter")
        page.wait_for_selector("#labels li")
        ask(page, CAT) if page.locator("#given").is_hidden() else page.click("#go")
        page.wait_for_selector("#hits li")
        page.evaluate(LOADED)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.screenshot(path=ROOT / "reports" / "page-phone.png")
    finally:
        page.set_viewport_size(size or {"width": 1100, "height": 900})


def test_who_reads_no_chinese_has_it_in_english(page: "Page", url: str) -> None:
    page.click("#language")
    page.wait_for_url("**/?lang=en")
    assert page.title() == "Search pictures · Chinese CLIP"
    page.fill("#query", CIRCLE)
    page.press("#query", "Enter")
    message_with(page, "10 pictures")
    page.wait_for_url(f"**/?q={quote(CIRCLE)}&lang=en")
    chinese = re.compile("[\u4e00-\u9fff]+")
    for selector in ("h1", ".lead", "#go", "label[for=file]", "#remove", "#classify button"):
        assert not chinese.search(page.locator(selector).text_content() or ""), selector
    page.click("#language")
    page.wait_for_url(f"**/?q={quote(CIRCLE)}&lang=zh")
    message_with(page, f"“{CIRCLE}”：")


def test_both_languages_have_the_same_words(page: "Page") -> None:
    chinese, english = page.evaluate("[Object.keys(ZH), Object.keys(EN)]")
    assert chinese == english


def test_it_can_be_used_without_a_mouse(page: "Page") -> None:
    page.keyboard.type(CIRCLE)  # the field has the focus from the start
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "go"
    page.keyboard.press("Enter")
    message_with(page, f"“{CIRCLE}”：")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ({"kind": "input", "error": "item 0: the text is empty"}, "请先写下要找的内容。"),
        ({"kind": "input", "error": "the text has 20000 bytes; 16384 are allowed"}, "这句话太长了，请写短一些。"),
        ({"kind": "input", "error": "top: too large"}, "无法这样查找：top: too large"),
        ({"kind": "overload", "error": "Triton is not ready"}, "服务正忙，或模型还没有准备好，请稍后再试。"),
        ({"kind": "not_found", "error": "no gallery"}, "没有找到这个图库，请刷新页面。"),
        ({"kind": "internal", "error": "an internal error"}, "服务内部出错，请把编号 7f 告诉管理员，日志里有原因。"),
        ({"detail": "of a proxy"}, "服务的回答无法读懂（状态 500）。"),
        (None, "服务没有回应，请确认 make serve 仍在运行。"),
    ],
    ids=["empty", "long", "input", "overload", "not_found", "internal", "proxy", "nobody"],
)
def test_each_kind_of_failure_is_said_in_chinese(page: "Page", problem: dict[str, str] | None, said: str) -> None:
    ask(page, CIRCLE)

    def fail(route: Any) -> None:
        route.abort() if problem is None else route.fulfill(status=500, json=problem | {"id": "7f"})

    page.route("**/api/search*", fail)
    page.press("#query", "Enter")
    page.wait_for_selector("#message.error")
    assert page.inner_text("#message") == said
    assert page.locator("#hits li").count() == 0


def test_a_choice_of_galleries_is_offered_when_there_are_several(page: "Page", url: str) -> None:
    assert page.locator("#gallery").is_hidden()
    asked: list[str] = []

    def offer(route: Any) -> None:
        route.fulfill(json={"release": "0123456789abcdef", "galleries": ["birds", "cats"]})

    def answer(route: Any) -> None:
        asked.append(route.request.url.partition("?")[2])
        route.fulfill(json={"release": "0123456789abcdef", "milliseconds": 1, "hits": []})

    page.route("**/api/galleries", offer)
    page.route("**/api/search*", answer)
    page.goto(f"{url}/?q=x")
    message_with(page, "“x”：")
    page.select_option("#gallery", "cats")
    page.wait_for_url("**/?q=x&gallery=cats")
    page.reload()
    message_with(page, "“x”：")
    assert page.input_value("#gallery") == "cats"
    page.goto(f"{url}/?q=x&gallery=dogs")  # which no release has any more
    message_with(page, "“x”：")
    assert asked == ["text=x&top=10", *["text=x&top=10&gallery=cats"] * 2, "text=x&top=10"]
