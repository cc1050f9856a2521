"""From the reference's TSV to packed shards, against cn_clip's own LMDB build, which copies the base64 as it is.

Ours decodes it, reads each picture's header, notes its sha256 and writes pictures in the order of their keys: `ingest`
and `pack` as users run them, in a process a core. Their start counts; few pictures show what it takes.
"""

import base64
import contextlib
import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.command import read_options
from benchmarks.compare import compare
from benchmarks.data import photos
from benchmarks.report import keep, machine, spread
from clip_core.config.engine import Engine
from clip_core.config.packing import Pack
from clip_core.config.sources import MugeSource

NUM, FEW = 20_000, 200  # pictures: few take little more than the start-up
DISTINCT = 500  # pictures of one look differ in bytes behind their end
TEXT = "\u4e00\u53ea\u732b\u5750\u5728\u7a97\u53f0\u4e0a\u770b\u96e8"
NUMERALS = "\u96f6\u4e00\u4e8c\u4e09\u56db\u4e94\u516d\u4e03\u516b\u4e5d"  # or validation finds too little Chinese
BUILD = "cn_clip.preprocess.build_lmdb_dataset"
SOURCE = MugeSource(
    source="muge", path="muge", licence="ours", train="train", valid=None, test="valid", valid_percent=2
)
Run = Callable[[], np.ndarray]


def main() -> None:
    options = read_options("packing", repeats=5)
    measured: dict[str, dict] = {}
    for num, folder in ((NUM, options.work / "packing"), (FEW, options.work / "packing-few")):
        prepare(folder, num)
        shared: dict = {"task": "pack", "folder": str(folder), "num": num, "threads": 1, "model": ""}
        name = f"{num:,} pictures from TSV to shards / cn_clip's LMDB"
        found = compare({**shared, "side": "ours"}, {**shared, "side": "cn_clip"}, options.repeats)
        measured[name] = {"num": num, **found}
        print(f"{name}: {spread(found['ratio'])} times as fast", flush=True)
    many, few = measured.values()
    ours, peer = (many[side][1] - few[side][1] for side in ("our_seconds", "peer_seconds"))
    print(f"start-up left out: {peer / ours:.2f} times as fast ({ours:.1f} s against {peer:.1f} s)", flush=True)
    result = {"model": "packing", **machine(1), "rows": measured}
    keep("packing", result, options.results)


def prepare(folder: Path, num: int) -> None:
    """`train` and `valid` in the reference's format, and our pair tables as curation leaves them, not timed."""
    if (folder / "done").exists():
        return
    (folder / "muge").mkdir(parents=True, exist_ok=True)
    held_out = num // 20
    for name, numbers in (("train", range(num - held_out)), ("valid", range(num - held_out, num))):
        _write_split(folder / "muge", name, numbers)
    with contextlib.chdir(folder):
        _ingest()
        _write_curated(Path("raw"), Path("curated"))
    (folder / "done").touch()


def make(spec: dict) -> Run:
    """Goes from TSV to packed shards in a run, and tells how many pairs and pictures are in them."""
    os.chdir(spec["folder"])
    return _ours if spec["side"] == "ours" else _cn_clip


def _ours() -> np.ndarray:
    from stages import pack

    shutil.rmtree(".work", ignore_errors=True)  # or nothing would be made again
    _ingest()
    pack.main(
        pack.Params(pack=Pack(shard_mib=256, resize=None)), _engine(), Path("curated"), Path("raw"), Path("packed")
    )
    manifests = [json.loads(path.read_bytes()) for path in sorted(Path("packed").glob("*/manifest.json"))]
    return np.array([[sum(manifest[name] for manifest in manifests) for name in ("num_pairs", "num_images")]])


def _cn_clip() -> np.ndarray:
    import lmdb

    with patch.object(sys, "argv", [BUILD, "--data_dir", "muge", "--splits", "train,valid", "--lmdb_dir", "theirs"]):
        shutil.rmtree("theirs", ignore_errors=True)
        runpy.run_module(BUILD, run_name="__main__")
    counts = []
    for name, key in (("pairs", b"num_samples"), ("imgs", b"num_images")):
        for split in ("train", "valid"):
            with lmdb.open(f"theirs/{split}/{name}", readonly=True) as environment, environment.begin() as records:
                counts.append(int(records.get(key) or 0))
    return np.array([[sum(counts[:2]), sum(counts[2:])]])


def _ingest() -> None:
    from stages import ingest

    ingest.main(ingest.Params(data=SOURCE), _engine(), Path("raw"), Path("quarantine"), Path("tombstones.txt"))


def _engine() -> Engine:
    return Engine(maps="local", processes=None, address=None)


def _write_split(folder: Path, name: str, numbers: range) -> None:
    looks = photos(min(len(numbers), DISTINCT))
    with (folder / f"{name}_imgs.tsv").open("wb") as tsv, (folder / f"{name}_texts.jsonl").open("w") as texts:
        for number in numbers:
            tsv.write(b"%d\t%s\n" % (number, base64.b64encode(looks[number % len(looks)] + b"%d" % number)))
            caption = TEXT + "".join(NUMERALS[int(digit)] for digit in str(number))
            row = {"text_id": number, "text": caption, "image_ids": [number]}
            texts.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_curated(raw: Path, curated: Path) -> None:
    from clip_core.data.pairs import read_pairs, shards_in, write_pairs

    curated.mkdir(exist_ok=True)
    for shard in shards_in(raw):
        pairs = read_pairs(raw / f"pairs-{shard}.parquet")
        write_pairs(pairs.assign(seen=True, near_duplicate_group=pairs["image_id"]), curated / f"pairs-{shard}.parquet")


if __name__ == "__main__":
    main()
