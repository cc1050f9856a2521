"""The page of validation: what failed, how it looks, and nothing in it runs or is loaded."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from clip_core.config.validation import Validate
from clip_core.data.across import KeyFacts
from clip_core.data.validation import picture_of
from clip_core.data.validation_page import write_page
from clip_core.data.verdict_on_all import judge_all
from tests.judged import MAX_PIXELS, SMALL, judged, judged_alone
from tests.small_raw import drawing, encoded, pair_row, small_raw, write_raw

HOSTILE = '<script>alert("1")</script>\'" onerror=x {{ 7 * 7 }}'


class Page(HTMLParser):
    """What a browser would see of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(rows: list[dict], images: dict[str, bytes], folder: Path, params: Validate = SMALL) -> tuple[str, dict]:
    """The page and validation.json of these rows."""
    folder.mkdir(exist_ok=True)
    verdict = judged_alone(judged(rows, images), params=params)
    write_page(verdict, folder, lambda _file, image_id: images.get(image_id), MAX_PIXELS)
    return (folder / "index.html").read_text(encoding="utf-8"), json.loads(
        (folder / "validation.json").read_text(encoding="utf-8")
    )


def test_the_page_names_each_rule_that_failed_with_its_number_and_at_most_five_pictures_of_each(tmp_path: Path) -> None:
    rows, images = small_raw()
    for row in rows[:7]:
        row["licence"] = ""
    images["long"] = encoded(drawing(99, 20, 240))
    rows.append(pair_row("long", images["long"], "长图", "test"))
    html, summary = page_of(rows, images, tmp_path)
    page = Page(html)
    broken = {rule["name"]: rule["bad_rows"] for rule in summary["rules"] if rule["bad_rows"]}
    assert broken == {"picture_aspect": 1, "licence_given": 7}
    assert summary["counts"]["rejected"] == {"licence_given": 6}  # one of the seven is in valid
    pictures = [link for link in page.links if link.startswith("data:image/png")]
    assert len(pictures) == 5 + 1
    shown = Image.open(io.BytesIO(base64.b64decode(pictures[0].partition("base64,")[2])))
    assert shown.format == "PNG" and shown.height == 96
    assert "stays in the benchmark" in page.text and "rejected under licence_given" in page.text
    assert "7 of 13 rows kept, 6 in quarantine" in page.text
    refused = Page(page_of(rows, images, tmp_path, SMALL.model_copy(update={"max_bad_share": 0.1}))[0]).text
    assert "refused" in refused and "6 of 13 rows are bad" in refused
    assert page.tags.count("svg") == 5


@pytest.mark.parametrize(
    ("data", "why"),
    [(b"no picture", "not a picture"), (encoded(drawing(1, 60, 60), "JPEG")[:-300], "broken picture"),
     (encoded(drawing(1, 80, 80)), "too many pixels"), (None, "no such picture")],
)  # fmt: skip
def test_where_there_is_no_picture_to_show_the_page_says_why(data: bytes | None, why: str, tmp_path: Path) -> None:
    rows, images = small_raw()
    images |= {} if data is None else {"bad": data}
    rows.append(pair_row("bad", data or b"", "坏图", "train"))
    page = Page(page_of(rows, images, tmp_path)[0])
    assert why in page.text and "img" not in page.tags


def test_what_the_data_say_is_text_on_the_page_and_nothing_is_loaded(tmp_path: Path) -> None:
    rows, images = small_raw()
    images[HOSTILE] = b"no picture"
    rows.append(pair_row(HOSTILE, images[HOSTILE], HOSTILE, "train", licence=HOSTILE))
    rows[0] |= {"licence": HOSTILE, "source": HOSTILE}
    html, _ = page_of(rows, images, tmp_path)
    page = Page(html)
    assert "script" not in page.tags and "onerror" not in page.names
    assert page.text.count(HOSTILE) >= 4
    assert all(link.startswith("data:") for link in page.links)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html


def test_the_page_and_its_numbers_are_there_when_nothing_is(tmp_path: Path) -> None:
    verdict = judge_all([], KeyFacts(0, 0, 0, 0, 0), SMALL)
    write_page(verdict, tmp_path, lambda _file, _image_id: None, MAX_PIXELS)
    assert "not a single row" in (tmp_path / "index.html").read_text(encoding="utf-8")
    summary = json.loads((tmp_path / "validation.json").read_text(encoding="utf-8"))
    assert (summary["read"], summary["kept"], summary["rejected"], summary["passed"]) == (0, 0, 0, False)


def test_a_picture_is_found_beside_its_pair_table(tmp_path: Path) -> None:
    rows, images = small_raw()
    raw = write_raw(rows, images, tmp_path / "raw")
    for image_id, image in images.items():
        assert picture_of(str(raw / "pairs-small.parquet"), image_id) == image
    assert picture_of(str(raw / "pairs-small.parquet"), "picture-05x") is None
