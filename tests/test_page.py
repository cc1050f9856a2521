"""The page, in a real browser: pictures in the order of `clip_search`, and nothing from outside."""

import shutil
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from clip_core.serve.queries import search
from clip_core.serve.triton import connect
from tests.conftest import ROOT
from tests.page_server import Supervised, add_gallery, page_of
from tests.tiny_release import Release

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from clip_core.serve.triton import Server

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
CAT = "一只猫"  # the first example
CIRCLE, SQUARE = "红色圆形", "一张蓝色方块的图片"
# The page's policy forbids eval, on which playwright's wait_for_function rests; decode() ends when a picture is there.
LOADED = "Promise.all([...document.images].map((image) => image.decode()))"

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no browser: apt-get install -y chromium fonts-wqy-microhei (as root)"
)


@pytest.fixture(scope="module")
def url(triton: "Server", release: Release, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of the page."""
    releases = tmp_path_factory.mktemp("releases")
    add_gallery(releases, release.id, "test", release.store.folder)
    with page_of(Supervised(triton.address), releases) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def tab(url: str) -> Generator["Page"]:
    """A browser's tab that can reach the page's server and nothing else."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1100, "height": 900})
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
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert page.locator("#hits img").count() == 10
    (ROOT / "reports").mkdir(exist_ok=True)
    page.screenshot(path=ROOT / "reports" / "page.png")

    def reverse(route: Any) -> None:  # random weights find the same for every text
        answer = route.fetch().json()
        route.fulfill(json=answer | {"hits": answer["hits"][::-1]})

    page.route("**/api/search*", reverse)
    assert ask(page, SQUARE) == first[::-1]
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")


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


def test_it_can_be_used_without_a_mouse(page: "Page") -> None:
    page.keyboard.type(CIRCLE)  # the field has the focus from the start
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "go"
    page.keyboard.press("Enter")
    message_with(page, f"“{CIRCLE}”：")


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
