"""Which of a benchmark's pictures and texts training data have, too: the same, and such as look or read the same."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clip_core.code import reached_by
from clip_core.config.section import hash_of
from clip_core.data.key_tables import write_thumbnails
from clip_core.data.near import SIDE, Looks
from clip_core.data.profile import facts_of
from clip_core.data.store import Store
from clip_core.inference.features import Shelf, shelves_of
from clip_core.kept import keep

KIND = "facts"  # of kept results
MAX_PIXELS = 40_000_000  # a larger picture is not looked at
ROWS = 4096  # in a row group


@dataclass(frozen=True)
class Overlap:
    """How many of the benchmark's pictures and texts the training data have; near ones are counted with the same."""

    pictures_exact: int  # the same bytes
    pictures_near: int  # curation's near-duplicates
    texts_exact: int
    texts_near: int  # but for width, case, marks and blanks
    num_pictures: int
    num_texts: int


def overlap_with(train: Store, shelves: Sequence[Shelf], texts: Sequence[str], distance: int) -> Overlap:
    """Of the packed training data with the benchmark; `distance`: as curate.near_duplicate_distance."""
    same, near = _pictures(train, shelves, distance)
    exact, plain = np.zeros(len(texts), dtype=bool), np.zeros(len(texts), dtype=bool)
    normal = [normalised(text) for text in texts]
    for number in range(len(train.manifest["shards"]) if texts else 0):
        captions = set(train.pairs_of([number], ["caption"])["caption"].dropna())
        exact |= np.fromiter((text in captions for text in texts), bool, len(texts))
        captions = set(map(normalised, captions))
        plain |= np.fromiter((text in captions for text in normal), bool, len(texts))
    num_pictures = sum(len(shelf.image_ids) for shelf in shelves)
    return Overlap(same, near, int(exact.sum()), int(plain.sum()), num_pictures, len(texts))


def normalised(text: str) -> str:
    """The letters and digits of the text alone, in one width and case."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def _pictures(train: Store, shelves: Sequence[Shelf], distance: int) -> tuple[int, int]:
    """How many of the benchmark's pictures are in train, and how many resemble one."""
    import pyarrow.parquet as pq

    files = [[_facts(shelf) for shelf in some] for some in (shelves_of(train), shelves)]
    tables = [pq.read_table(file, columns=["sha256", "difference_hash"]) for some in files for file in some]
    num_train = sum(len(table) for table in tables[: len(files[0])])
    columns = {
        name: [value for table in tables for value in table[name].to_pylist()] for name in ("sha256", "difference_hash")
    }
    of_train = set(columns["sha256"][:num_train])
    for number in range(len(train.manifest["shards"])):  # packed ones may be smaller than those they were made of
        of_train |= set(train.pairs_of([number], ["image_sha256"])["image_sha256"].dropna())
    same = sum(sha256 in of_train for sha256 in columns["sha256"][num_train:])
    hashes = np.array(columns["difference_hash"], dtype=np.uint64)
    with TemporaryDirectory() as folder:
        quarters = write_thumbnails([*files[0], *files[1]], Path(folder, "thumbnails"))
        thumbnails = np.memmap(Path(folder, "thumbnails"), np.uint8, "r", shape=(len(hashes), SIDE * SIDE * 3))
        looks = Looks(hashes, quarters, thumbnails, distance)
        found = looks.first_alike(range(num_train), np.arange(len(hashes)) >= num_train)
    return same, int((found[num_train:] >= 0).sum())


def _facts(shelf: Shelf) -> Path:
    """What curation compares pictures by, of those that can be decoded: a table that is kept."""
    reached = reached_by("clip_core.data.profile")
    key = hash_of(shelf.key, MAX_PIXELS, reached.code, reached.versions)
    return keep(KIND, key, partial(_write_facts, shelf)) / "facts.parquet"


def _write_facts(shelf: Shelf, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"actual_sha256": pa.string(), "difference_hash": pa.uint64(), "thumbnail": pa.binary()}
    schema = pa.schema([("sha256", pa.string()), ("difference_hash", pa.uint64()), ("thumbnail", pa.binary())])
    facts_of_all = facts_of(zip(shelf.image_ids, shelf.read(), strict=True), MAX_PIXELS)
    with pq.ParquetWriter(folder / "facts.parquet", schema) as writer:
        while some := list(islice(facts_of_all, ROWS)):
            known = [facts for facts in some if "difference_hash" in facts]
            columns = [pa.array([facts[name] for facts in known], kind) for name, kind in kinds.items()]
            writer.write_table(pa.table(columns, schema=schema))
