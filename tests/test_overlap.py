"""Which pictures and texts of a benchmark training data have: counted by hand."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.evaluate.benchmarks.overlap import Overlap, normalised, overlap_with
from clip_core.inference.features import Shelf
from tests.made_benchmarks import pictures
from tests.tiny import tiny_store


def test_normalised_texts_differ_in_letters_and_digits_alone() -> None:
    assert normalised("红色，圆形! ＡＢc１") == normalised("红色圆形abC1") == "红色圆形abc1"
    assert normalised("红色圆形") != normalised("红色方块")


def test_the_same_bytes_are_exact_and_the_same_look_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with tiny_store(tmp_path / "train") as store:
        same = [store.image_bytes(i) for i in (0, 7)]
        saved = io.BytesIO()
        Image.open(io.BytesIO(store.image_bytes(12))).save(saved, "BMP")  # other bytes, the same look
        images = [*pictures(500, 3), *same, saved.getvalue(), saved.getvalue()]
        shelves = [
            Shelf("a", list("0123"), partial(iter, images[:4])),
            Shelf("b", list("456"), partial(iter, images[4:])),
        ]
        texts = ["红色圆形", "红色，圆形", "一只鹤", "RED  circle"]
        found = overlap_with(store, shelves, texts, distance=4)
        assert found == Overlap(
            pictures_exact=2, pictures_near=4, texts_exact=1, texts_near=3, num_pictures=7, num_texts=4
        )
        assert overlap_with(store, shelves[:1], [], distance=4) == Overlap(1, 1, 0, 0, 4, 0)


def test_pictures_in_no_order_resemble_what_a_look_at_all_pairs_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with tiny_store(tmp_path / "train") as store:
        train = [store.image_bytes(i) for i in range(len(store))]
        draw = np.random.default_rng(0)
        images = [train[i] for i in draw.permutation(len(train))[:10]] + pictures(900, 5)
        shelf = Shelf("x", [str(i) for i in range(15)], partial(iter, images))
        found = overlap_with(store, [shelf], [], distance=4)
        assert (found.pictures_exact, found.pictures_near) == (10, 10)
