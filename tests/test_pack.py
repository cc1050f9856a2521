"""Stores hold the pictures they were given, byte for byte, in any process, and come out the same twice."""

import gc
import json
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clip_core.data.store import Store, StoreWriter, open_store
from clip_core.files import sha256_file
from tests.conftest import ROOT
from tests.small_raw import SPLITS, drawing, encoded, small_raw, write_raw
from tests.stage_calls import call
from tests.test_full_disk import on_a_disk_of


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """`data/packed` of the small, clean data."""
    return pack_into(tmp_path / "packed", tmp_path)


def pack_into(out: Path, tmp_path: Path) -> Path:
    rows, images = small_raw()
    raw = tmp_path / "raw"
    if not raw.exists():
        write_raw([row | {"seen": True} for row in rows], images, raw)
    call("pack", ROOT / "params.yaml", raw, raw, out)
    return out


def small_store(folder: Path, file_bytes: int) -> Store:
    rows, images = small_raw()
    writer = StoreWriter(folder, file_bytes)
    for image_id, image in sorted(images.items()):
        writer.add(image_id, image)
    writer.finish(pd.DataFrame(rows).assign(seen=True))
    return open_store(folder)


def test_every_split_has_its_pictures_and_pairs(packed: Path) -> None:
    rows, images = small_raw()
    for split in ("train", "valid", "test"):
        store = open_store(packed / split)
        expected = [row["image_id"] for row in rows if row["split"] == split]
        assert store.image_ids == expected == sorted(expected)
        assert [store.image_bytes(i) for i in range(len(store))] == [images[image_id] for image_id in expected]
        assert store.pairs["image_id"].tolist() == expected
        assert (store.manifest["num_images"], store.manifest["num_pairs"]) == (len(expected), SPLITS.count(split))


def test_what_is_read_is_packed(packed: Path) -> None:
    counts = json.loads((packed / "counts.json").read_text())
    assert counts["read"] == counts["kept"] == 12 and counts["rejected"] == 0
    assert sum(counts["images"].values()) == 12


def test_packing_again_gives_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    again = pack_into(tmp_path / "again", tmp_path)
    files = sorted(path.relative_to(packed) for path in packed.rglob("*") if path.is_file())
    assert len(files) == 13  # four a split, and counts.json
    assert [sha256_file(packed / file) for file in files] == [sha256_file(again / file) for file in files]


def test_shards_are_bounded_and_read_as_one(tmp_path: Path) -> None:
    rows, images = small_raw()
    store = small_store(tmp_path / "store", file_bytes=2 * len(images["picture-00"]))
    assert len(store.files) > 3
    assert [store.image_bytes(i) for i in range(len(store))] == [images[row["image_id"]] for row in rows]


def test_reading_leaves_the_folder_as_it_is(packed: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in (packed / "train").iterdir())
    open_store(packed / "train").image_bytes(0)
    assert sorted((path, path.stat().st_mtime_ns) for path in (packed / "train").iterdir()) == before


def test_a_folder_is_opened_twice_in_one_process(packed: Path) -> None:
    first, second = open_store(packed / "train"), open_store(packed / "train")
    assert first.image_bytes(0) == second.image_bytes(0)


def test_links_to_one_file_are_read_side_by_side(packed: Path, tmp_path: Path) -> None:
    # as two releases with the same pictures are, which link to what DVC's cache has
    linked = Path(shutil.copytree(packed / "train", tmp_path / "linked", copy_function=os.link))
    with open_store(packed / "train") as one, open_store(linked) as other:
        assert one.image_bytes(0) == other.image_bytes(0)
        one.close()
        assert len(other.image_bytes(1)) > 0


def test_an_open_store_is_pickled_to_a_fresh_process(packed: Path) -> None:
    store = open_store(packed / "train")
    expected = store.image_bytes(1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(store.image_bytes, (1,)) == expected
    assert b"PNG" not in pickle.dumps(store)  # the pictures stay on the disk


def test_threads_that_ask_for_the_first_picture_at_once_all_get_it(packed: Path) -> None:
    copy = shutil.copytree(packed / "train", packed.parent / "fresh")  # a shard that this process has not opened yet
    store = open_store(copy)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(store.image_bytes, [0] * 32))
    assert found == [open_store(packed / "train").image_bytes(0)] * 32


def test_an_open_store_is_read_after_a_fork(packed: Path) -> None:
    store = open_store(packed / "train")
    expected = store.image_bytes(2)
    child = os.fork()
    if child == 0:
        os._exit(
            0 if store.image_bytes(2) == expected and open_store(packed / "train").image_bytes(2) == expected else 1
        )
    assert os.waitpid(child, 0)[1] == 0


def test_a_forked_child_closes_its_own_files_and_not_the_parents(packed: Path) -> None:
    store = open_store(packed / "train")
    expected = store.image_bytes(2)
    child = os.fork()
    if child == 0:
        store.close()
        os._exit(num_open_in(packed))
    assert os.waitpid(child, 0)[1] == 0
    assert store.image_bytes(2) == expected


def num_open_in(folder: Path) -> int:
    """How many file descriptors of this process lead into the folder, also to files that are gone by now."""
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            targets.append(descriptor.readlink())
    return sum(target.is_relative_to(folder.resolve()) for target in targets)


def test_a_closed_store_has_no_file_open_and_says_that_it_is_closed(packed: Path) -> None:
    with open_store(packed / "train") as store:
        store.image_bytes(0)
        assert num_open_in(packed) == 1
    assert num_open_in(packed) == 0
    with pytest.raises(ValueError, match="train: this store is closed"):
        store.image_bytes(0)
    store.close()  # as a file: once more changes nothing


def test_stores_of_the_same_files_share_them_and_the_last_closes_them(packed: Path) -> None:
    first, second = open_store(packed / "train"), open_store(packed / "train")
    expected = first.image_bytes(0)
    assert second.image_bytes(0) == expected
    assert num_open_in(packed) == 1
    first.close()
    assert (second.image_bytes(0), num_open_in(packed)) == (expected, 1)
    second.close()
    assert num_open_in(packed) == 0


def test_a_store_that_nobody_names_any_more_has_no_file_open(packed: Path) -> None:
    store = open_store(packed / "train")
    store.image_bytes(0)
    del store
    assert num_open_in(packed) == 0
    store = open_store(packed / "train")
    store.image_bytes(0)
    vars(store)["itself"] = store
    del store
    gc.collect()
    assert num_open_in(packed) == 0


def test_a_folder_that_others_replace_is_read_anew_and_the_store_of_before_stays_what_it_was(tmp_path: Path) -> None:
    rows, images = small_raw()
    before = small_store(tmp_path / "store", 2**20)
    assert before.image_bytes(0) == images[rows[0]["image_id"]]
    shutil.rmtree(tmp_path / "store")
    writer = StoreWriter(tmp_path / "store", 2**20)
    image = encoded(drawing(99))
    writer.add("new", image)
    writer.finish(
        pd.DataFrame([rows[0] | {"image_id": "new", "image_sha256": sha256(image).hexdigest(), "seen": True}])
    )
    with open_store(tmp_path / "store") as store:
        assert (len(store), store.image_bytes(0)) == (1, image)
        assert before.image_bytes(0) == images[rows[0]["image_id"]]
        assert num_open_in(tmp_path) == 2
    before.close()
    assert num_open_in(tmp_path) == 0


def test_stores_are_closed_while_other_threads_read_the_same_files(tmp_path: Path) -> None:
    _, images = small_raw()
    expected = [images[image_id] for image_id in sorted(images)]
    small_store(tmp_path / "store", file_bytes=1)  # a shard for every picture

    def read(_: int) -> bool:
        with open_store(tmp_path / "store") as store:
            return [store.image_bytes(i) for i in range(len(store))] == expected

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))
    assert num_open_in(tmp_path) == 0


def test_a_store_is_closed_in_the_midst_of_another_threads_reading(packed: Path) -> None:
    for _ in range(50):
        store = open_store(packed / "train")
        expected = store.image_bytes(0)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read_until_closed, store)
            store.close()
            assert reading.result() <= {expected}
        assert num_open_in(packed) == 0


def read_until_closed(store: Store) -> set[bytes]:
    found = set()
    with pytest.raises(ValueError, match="this store is closed"):
        for _ in range(10**6):
            found.add(store.image_bytes(0))
    return found


def test_an_index_outside_is_refused(packed: Path) -> None:
    store = open_store(packed / "valid")
    for index in (-1, len(store)):
        with pytest.raises(IndexError, match=f"picture {index} of 3"):
            store.image_bytes(index)


def test_pictures_out_of_order_are_refused(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "store", 2**20)
    writer.add("b", b"1")
    with pytest.raises(ValueError, match="'a' after 'b'"):
        writer.add("a", b"2")


PACK = """
import sys
from pathlib import Path
from clip_core.errors import UserError
from tests.stage_calls import call
params, raw, small = map(Path, sys.argv[1:])
room, is_packed = 0, False
while not is_packed:
    filler = small / "filler"
    filler.write_bytes(bytes(2**20 - room))
    try:
        call("pack", params, raw, raw, small / "packed")
        is_packed = True
    except UserError as error:
        print(error)
        assert [path.name for path in small.iterdir()] == ["filler"], list(small.iterdir())
    filler.unlink()
    room += 2**15
print(*sorted(path.name for path in (small / "packed").iterdir()))
"""


def test_wherever_the_disk_gets_full_nothing_half_packed_is_left_and_the_remedy_is_said(tmp_path: Path) -> None:
    rows, images = small_raw()
    raw = write_raw([row | {"seen": True} for row in rows], images, tmp_path / "raw")
    *said, packed = on_a_disk_of(2**20, tmp_path / "small", PACK, ROOT / "params.yaml", raw, tmp_path / "small")
    assert packed == "counts.json test train valid"
    refused = [line for line in said if not line.startswith("pack: ")]
    assert len(refused) > 3
    for line in refused:
        assert "No space left on device; free disk space and run again" in line or "make room and run again" in line


def test_a_picture_that_is_not_the_one_in_the_pair_table_is_refused(tmp_path: Path) -> None:
    rows, images = small_raw()
    images["picture-02"] = encoded(drawing(99))
    raw = write_raw([row | {"seen": True} for row in rows], images, tmp_path / "raw")
    with pytest.raises(ValueError, match="train: the pictures are not those of the pair table"):
        call("pack", ROOT / "params.yaml", raw, raw, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("empty", ["train", "valid", "test"])
def test_a_split_without_pictures_is_refused_by_name(tmp_path: Path, empty: str) -> None:
    rows, images = small_raw()
    kept = [row | {"seen": True} for row in rows if row["split"] != empty]
    raw = write_raw(kept, images, tmp_path / "raw")
    with pytest.raises(ValueError, match=f"no pictures for {empty}.*valid_percent.*column `split`"):
        call("pack", ROOT / "params.yaml", raw, raw, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_missing_store_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Run `dvc repro pack`"):
        open_store(tmp_path)


@pytest.mark.parametrize(("kilobytes", "most"), [(10, 1.25), (20, 1.12), (76, 1.06)])  # LMDB rounds up to pages
def test_a_store_takes_little_more_than_its_pictures(kilobytes: int, most: float, tmp_path: Path) -> None:
    random, size = np.random.default_rng(0), 0
    writer = StoreWriter(tmp_path / "store", 2**30)
    for number in range(300):
        picture = random.bytes(int(1000 * kilobytes * random.uniform(0.6, 1.4)))
        writer.add(f"{number:03}", picture)
        size += len(picture)
    rows, _ = small_raw()
    pairs = pd.DataFrame([rows[0] | {"image_id": image_id} for image_id in writer.image_ids])
    writer.finish(pairs.assign(image_sha256=writer.sums, seen=True))
    assert sum(path.stat().st_size for path in (tmp_path / "store").glob("*.lmdb")) <= most * size
