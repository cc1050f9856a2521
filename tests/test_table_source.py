"""A folder with a CSV becomes pairs; bad records are set aside, a bad CSV is named with its line."""

import json
import os
import tempfile
from collections.abc import Generator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest

from clip_core.all_params import load_params
from clip_core.config.sources import TableSource
from clip_core.data.pairs import read_images, read_pairs, read_rejected
from clip_core.data.store import open_store
from clip_core.errors import UserError
from clip_core.recipe import apply_recipes, merged
from tests.conftest import ROOT
from tests.harvested import harvested
from tests.small_raw import drawing, encoded
from tests.stage_calls import call

HEADER = "image,caption\n"


def source(folder: Path, text: str | bytes = "", num_pictures: int = 3) -> TableSource:
    """A folder with the CSV `text` and the pictures 0.png, 1.png ..."""
    (folder / "in").mkdir(parents=True, exist_ok=True)
    for i in range(num_pictures):
        (folder / "in" / f"{i}.png").write_bytes(encoded(drawing(i)))
    (folder / "pairs.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return TableSource(
        source="table",
        path=str(folder),
        table="pairs.csv",
        columns=None,
        fetch=None,
        licence="CC0-1.0",
        valid_percent=20,
        test_percent=20,
    )


def test_a_record_becomes_a_pair_with_its_picture(tmp_path: Path) -> None:
    text = HEADER + 'in/0.png,"白猫，睡着了"\nin/./1.png, 红苹果 \nin/0.png,一只猫\n'
    found = harvested(source(tmp_path, text))
    assert found.pairs["caption"].tolist() == ["白猫，睡着了", "红苹果", "一只猫"]
    assert found.pairs["image_id"].tolist() == ["in/0.png", "in/1.png", "in/0.png"]  # several captions, one picture
    assert set(found.pairs["language"]) == {"zh"} and set(found.pairs["licence"]) == {"CC0-1.0"}
    assert found.pairs["pair_id"].is_unique and found.pairs["concept_id"].isna().all()
    assert dict(found.images) == {"in/0.png": encoded(drawing(0)), "in/1.png": encoded(drawing(1))}


def test_columns_for_split_and_language_are_used_and_others_left_out(tmp_path: Path) -> None:
    text = "\ufeffnote,split,caption,image,language\nx,test,a cat,in/0.png,en\ny,train,苹果,in/1.png,\n"
    pairs = harvested(source(tmp_path, text)).pairs
    assert pairs[["split", "language"]].to_numpy().tolist() == [["test", "en"], ["train", "zh"]]


def test_without_a_column_split_the_path_decides_and_a_picture_is_on_one_side(tmp_path: Path) -> None:
    lines = [f"in/{i}.png,{caption}\n" for i in range(200) for caption in ("猫", "狗")]
    pairs = harvested(source(tmp_path, HEADER + "".join(lines), num_pictures=200)).pairs
    assert pairs.groupby("image_id")["split"].nunique().eq(1).all()
    share = pairs["split"].value_counts(normalize=True)
    assert 0.1 < share["valid"] < 0.3 and 0.1 < share["test"] < 0.3
    fewer = harvested(source(tmp_path, HEADER + "".join(lines[100:]))).pairs
    assert fewer["split"].tolist() == pairs["split"].tolist()[100:]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("in/none.png,没有", "image_missing"),
        ("in,文件夹", "image_missing"),
        (f"in/{'x' * 300}.png,太长", "image_missing"),
        ("in/0\0.png,零", "image_missing"),
        ("../outside.png,外面", "image_outside_folder"),
        ("{absolute},外面", "image_outside_folder"),
        ("in/link.png,外面", "image_outside_folder"),
        (",没有名字", "image_blank"),
        ("in/5.png,", "caption_blank"),  # of train
        ("in/5.png,\u3000", "caption_blank"),
        ("in/0.png,猫,狗", "wrong_number_of_cells"),
        ("in/0.png", "wrong_number_of_cells"),
    ],
)
def test_a_bad_record_is_set_aside_with_file_and_line(record: str, reason: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(encoded(drawing(9)))
    folder = tmp_path / "mine"
    text = HEADER + 'in/1.png,"两\n行"\n\n' + record.replace("{absolute}", str(outside)) + "\nin/2.png,好\n"
    data = source(folder, text, num_pictures=6)
    (folder / "in" / "link.png").symlink_to(outside)
    found = harvested(data)
    assert found.rejected[["reason", "line"]].to_numpy().tolist() == [[reason, 5]]
    assert set(found.rejected["file"]) == {str(folder / "pairs.csv")}
    assert found.pairs["caption"].tolist() == ["两\n行", "好"]


def test_in_valid_and_test_a_record_may_lack_its_caption_or_its_image(tmp_path: Path) -> None:
    """A picture that no text names, and a text that has none, are candidates of a search; before, both were refused."""
    records = [
        "train,in/0.png,猫",
        "train,in/1.png,",
        "train,,狗",
        "test,in/1.png,",
        "test,,狗",
        "test,,",
        "valid,in/2.png, ",
    ]
    found = harvested(source(tmp_path, "split,image,caption\n" + "\n".join(records) + "\n"))
    columns = ["image_id", "text_id", "caption", "language", "split"]
    assert found.pairs[columns].fillna("").to_numpy().tolist() == [
        ["in/0.png", found.pairs["text_id"][0], "猫", "zh", "train"],
        ["in/1.png", "", "", "", "test"],
        ["", found.pairs["text_id"][2], "狗", "zh", "test"],
        ["in/2.png", "", "", "", "valid"],
    ]
    assert found.pairs["pair_id"].is_unique
    assert found.rejected[["line", "reason"]].to_numpy().tolist() == [
        [3, "caption_blank"],
        [4, "image_blank"],
        [7, "caption_blank"],
    ]
    assert [image_id for image_id, _ in found.images] == ["in/0.png", "in/1.png", "in/2.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,caption\nin/0.png,猫\n", r"pairs\.csv, line 1: no column image; the header is"),
        ("", r"line 1: no column image and no column caption"),
        ("image,caption,caption\n", r"line 1: the column caption stands there more than once"),
        ((HEADER + "in/0.png,好\nin/1.png,猫\n").encode("gb18030"), r"line 2: not UTF-8 .*Convert it"),
        (HEADER + 'in/0.png,好\nin/1.png,"猫\nin/2.png,狗\n', r"line 3: not CSV: .*Is a quote open"),
        (HEADER + "in/none.png,猫\n", r"not one of its 1 records is a pair; the first: line 2, image_missing"),
        (HEADER, r"not one of its 0 records is a pair"),
    ],
)
def test_an_unusable_csv_is_named_with_its_line(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        harvested(source(tmp_path, text))


def test_a_missing_csv_says_where_it_should_be(tmp_path: Path) -> None:
    data = source(tmp_path)
    (tmp_path / "pairs.csv").unlink()
    with pytest.raises(ValueError, match=r"data\.path.*names the folder"):
        harvested(data)


@contextmanager
def without_privileges() -> Generator[None]:
    """As one whom the bits of a file's mode stop, which they do not do for root."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        os.seteuid(mine)


def test_a_picture_and_a_csv_that_may_not_be_read_are_named() -> None:
    with tempfile.TemporaryDirectory() as place:  # tmp_path lies in a folder of root's
        Path(place).chmod(0o755)
        data = source(Path(place), HEADER + "in/0.png,猫\nin/1.png,狗\n")
        (Path(place) / "in" / "0.png").chmod(0)
        with chdir(place), without_privileges():
            found = harvested(data)
        assert found.rejected[["reason", "line"]].to_numpy().tolist() == [["image_unreadable", 2]]
        assert [image_id for image_id, _ in found.images] == ["in/1.png"]
        (Path(place) / "pairs.csv").chmod(0)
        with (
            chdir(place),
            without_privileges(),
            pytest.raises(UserError, match=r"pairs\.csv: can not be read: Permission denied"),
        ):
            harvested(data)


def test_own_pictures_come_through_to_the_stores_and_counts_add_up(tmp_path: Path) -> None:
    lines = [f"in/{i}.png,第{chr(0x4E00 + i)}张图\n" for i in range(60)]
    lines += ["in/none.png,没有\n", "in/broken.png,坏了\n", lines[5]]  # 5.png lies in train
    source(tmp_path / "mine", HEADER + "".join(lines), num_pictures=60)
    (tmp_path / "mine" / "in" / "broken.png").write_bytes(encoded(drawing(70))[:60])
    params_file = tmp_path / "params.yaml"
    params_file.write_text((ROOT / "params.yaml").read_text())
    overlay = tmp_path / "own.yaml"
    overlay.write_text(f"data: {{source: table, path: {tmp_path}/mine, table: pairs.csv, licence: mine,\n"
                       "  columns: null, fetch: null, valid_percent: 20, test_percent: 20}\n"
                       "validate: {max_bad_share: 0.1}\n")  # fmt: skip
    apply_recipes([overlay], params_file)

    raw, valid, curated, packed = (tmp_path / name for name in ("raw", "valid", "curated", "packed"))
    call("ingest", params_file, raw, tmp_path / "q" / "ingest", tmp_path / "tombstones.txt")
    call("validate", params_file, raw, valid, tmp_path / "q" / "validate", tmp_path / "page")
    call("curate", params_file, valid, raw, curated, tmp_path / "q" / "curate", tmp_path / "curation")
    call("pack", params_file, curated, raw, packed)

    counts = [json.loads((folder / "counts.json").read_text()) for folder in (raw, valid, curated, packed)]
    assert [(c["read"], c["kept"], c["rejected"]) for c in counts] == [
        (63, 62, 1),
        (62, 61, 1),
        (61, 60, 1),
        (60, 60, 0),
    ]
    reasons = [read_rejected(tmp_path / "q" / stage)["reason"].tolist() for stage in ("ingest", "validate", "curate")]
    assert reasons == [["image_missing"], ["picture_decodes"], ["exact_duplicate"]]
    stores = [open_store(packed / split) for split in ("train", "valid", "test")]
    assert sorted(image_id for store in stores for image_id in store.image_ids) == sorted(
        f"in/{i}.png" for i in range(60)
    )
    assert all(store.pairs["seen"].all() for store in stores)
    assert [image_id for image_id, _ in read_images(raw)] == sorted({*read_pairs(raw)["image_id"]})


def test_the_recipe_for_own_pairs_is_valid() -> None:
    from clip_core.all_params import check_params
    from clip_core.params_file import read_yaml

    recipe = ROOT / "recipes" / "table.yaml"
    params = check_params(merged(read_yaml(ROOT / "params.yaml"), read_yaml(recipe)), recipe)
    assert isinstance(params.data, TableSource)
    assert load_params(ROOT / "params.yaml").data.source == "emoji"
