"""The page, in a real browser: pictures in the order of `clip_search`, and nothing from outside."""

import json
import shutil
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clip_core.serve.queries import search
from clip_core.serve.triton import connect
from tests.conftest import ROOT, copy_of
from tests.served import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
CAT, FRUIT = "一只猫", "红色的水果"
# The page's policy forbids eval, on which playwright's wait_for_function rests; decode() ends when a picture is there.
LOADED = "Promise.all([...document.images].map((image) => image.decode()))"

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no browser: apt-get install -y chromium fonts-wqy-microhei (as root)"
)


@pytest.fixture(scope="module")
def project(smoke_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the smoke project, for serving its release."""
    return copy_of(smoke_project, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def url(project: Path) -> Generator[str]:
    """The address of the page."""
    with serving(project) as (address, _):
        yield address


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


def test_the_pictures_shown_are_those_of_clip_search(page: "Page", project: Path) -> None:
    address = json.loads((project / ".work" / "serve.json").read_text())["triton"]
    with closing(connect(address)) as client:
        found = search(client, [CAT, FRUIT])
    for text, answer in zip([CAT, FRUIT], found, strict=True):
        assert ask(page, text) == answer.ids
        shown = page.eval_on_selector_all("figcaption small", "scores => scores.map((score) => +score.textContent)")
        assert shown == pytest.approx(answer.scores.tolist(), abs=1e-3)


def test_every_picture_has_loaded_and_a_second_query_changes_them(page: "Page") -> None:
    first = ask(page, CAT)
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert page.locator("#hits img").count() == 10
    (ROOT / "reports").mkdir(exist_ok=True)
    page.screenshot(path=ROOT / "reports" / "page.png")
    second = ask(page, FRUIT)
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert first != second


def test_an_example_is_a_query(page: "Page") -> None:
    page.locator("#examples button").first.click()
    page.wait_for_selector("#hits img")
    assert page.input_value("#query") == CAT


def test_an_address_with_a_query_shows_its_pictures(page: "Page", url: str) -> None:
    page.goto(f"{url}/?q={FRUIT}")
    page.wait_for_selector("#hits img")
    assert page.input_value("#query") == FRUIT


def test_an_empty_query_is_answered_by_a_hint(page: "Page") -> None:
    ask(page, CAT)
    page.fill("#query", "  ")
    page.press("#query", "Enter")
    message_with(page, "请先写下要找的内容。")
    assert page.locator("#hits li").count() == 0


def test_a_failure_is_shown_in_words(page: "Page") -> None:
    page.route("**/api/search*", lambda route: route.fulfill(status=503, json={"error": "Triton does not answer"}))
    page.fill("#query", CAT)
    page.press("#query", "Enter")
    page.wait_for_selector("#message.error")
    assert "Triton does not answer" in page.inner_text("#message")
    page.unroute("**/api/search*")
    page.route("**/api/search*", lambda route: route.abort())
    page.press("#query", "Enter")
    message_with(page, "make serve")
