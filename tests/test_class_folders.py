"""Class folders are read as torchvision's `ImageFolder` reads them, and what does not fit is refused by name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clip_core.errors import UserError
from clip_core.evaluate.benchmarks.class_folders import read_class_folders
from tests.made_benchmarks import pictures, write_classes

NAMES = [f"第{i}类" for i in range(12)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve classes of one to three pictures each, in folders of three digits."""
    monkeypatch.chdir(tmp_path)
    return write_classes(tmp_path / "caltech-101", NAMES, [pictures(10 * i, 1 + i % 3) for i in range(12)])


def test_order_and_labels_are_those_of_image_folder(folder: Path) -> None:
    from torchvision.datasets import ImageFolder

    deep = folder / "test" / "003" / "more"
    deep.mkdir()
    shutil.copy(folder / "test" / "004" / "4-0.PNG", deep / "A.jpeg")
    shutil.copy(folder / "test" / "004" / "4-0.PNG", folder / "test" / "003" / "zz.bmp")
    names, labels, shelves, index = read_class_folders(folder, "test", several=False)
    samples = ImageFolder(str(folder / "test")).samples
    assert [image_id for shelf in shelves for image_id in shelf.image_ids] == [
        Path(path).relative_to(folder / "test").as_posix() for path, _ in samples
    ]
    assert labels.tolist() == [label for _, label in samples]
    assert names == NAMES and index == list(range(24))[::-1]
    assert [image for shelf in shelves for image in shelf.read()] == [Path(path).read_bytes() for path, _ in samples]


def test_a_picture_in_several_class_folders_is_one_of_several_classes_where_these_are_asked(folder: Path) -> None:
    shutil.copy(folder / "test" / "004" / "4-0.PNG", folder / "test" / "011" / "again.png")
    _, labels, shelves, _ = read_class_folders(folder, "test", several=True)
    num = sum(len(shelf.image_ids) for shelf in shelves)
    assert labels.shape == (24, 12) and num == 24
    assert labels.sum() == 25
    place = next(i for i, image_id in enumerate(shelves[0].image_ids) if image_id == "004/4-0.PNG")
    assert np.flatnonzero(labels[place]).tolist() == [4, 11]


def test_without_the_file_of_names_chinese_folders_are_the_classes(folder: Path) -> None:
    (folder / "label_cn.txt").unlink()
    with pytest.raises(UserError, match=r"label_cn\.txt: no such file: a Chinese name a line"):
        read_class_folders(folder, "test", several=False)
    for i, name in enumerate(NAMES):
        (folder / "test" / f"{i:03d}").rename(folder / "test" / name)
    assert read_class_folders(folder, "test", several=False)[0] == sorted(NAMES)


def unpadded(folder: Path) -> None:
    for i in range(12):
        (folder / "test" / f"{i:03d}").rename(folder / "test" / str(i))


def renamed_but_one(folder: Path) -> None:
    for i, name in enumerate(NAMES[:11]):
        (folder / "test" / f"{i:03d}").rename(folder / "test" / name)


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder of classes": (lambda f: shutil.rmtree(f / "test"), r"test: no such folder"),
    "a name too few": (
        lambda f: (f / "label_cn.txt").write_text("\n".join(NAMES[:11])),
        r"label_cn\.txt: 11 names, but .*test has 12 class folders \(000 to 011\)",
    ),
    "a blank name": (
        lambda f: (f / "label_cn.txt").write_text("\n".join(["甲", " ", *NAMES[2:]])),
        r"label_cn\.txt, line 2: a class without a name",
    ),
    "names in another encoding": (
        lambda f: (f / "label_cn.txt").write_bytes("\n".join(NAMES).encode("gbk")),
        r"label_cn\.txt: can not be read as UTF-8",
    ),
    "a class folder missing": (
        lambda f: shutil.rmtree(f / "test" / "005"),
        r"006: class folders that are numbers must be 0 to 10",
    ),
    "folders not filled up with zeros": (unpadded, r"10: class folders .* fill up with zeros \(000, 001"),
    "a folder that no name has": (
        renamed_but_one,
        r"011: in .*label_cn\.txt or as a folder, but not both; 2 like this",
    ),
    "a class without pictures": (
        lambda f: (f / "test" / "003" / "3-0.PNG").unlink(),
        r"003: no picture of this class",
    ),
    "a file that is no picture": (
        lambda f: (f / "test" / "003" / "Thumbs.db").write_bytes(b""),
        r"003/Thumbs\.db: no picture \(\.jpg",
    ),
    "an index of texts": (
        lambda f: (f / "index.json").write_text('[0, "1"]', encoding="utf-8"),
        r"index\.json: a list of numbers is expected",
    ),
    "an index that is no list": (
        lambda f: (f / "index.json").write_text('{"0": 1}', encoding="utf-8"),
        r"index\.json: a list of numbers is expected",
    ),
    "a file among the folders": (
        lambda f: (f / "test" / "cat.png").write_bytes(b""),
        r"test/cat\.png: a file among the class folders \(1 in all\)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_does_not_fit_is_refused_by_name(folder: Path, mistake: str) -> None:
    make, message = MISTAKES[mistake]
    make(folder)
    with pytest.raises(UserError, match=message):
        read_class_folders(folder, "test", several=False)
