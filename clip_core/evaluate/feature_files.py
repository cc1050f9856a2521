"""Features with their ids as files: `.npy` (ids beside it), `.parquet`, or the reference's `.jsonl`.

`.npy` is mapped into memory, not read. The reference's rows are `{"image_id": 7, "feature": [0.1, ...]}`, or with
`text_id` (cn_clip/eval/extract_features.py): five times as large, for tools that want them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_core.errors import UserError
from clip_core.evaluate.records import Id, plain_id, read_records
from clip_core.files import atomic_write, replacing_file

SUFFIXES = (".npy", ".parquet", ".jsonl")
KEYS = ("image_id", "text_id")
WEIGHTS = b"weights"  # the weights_id, in a parquet file's metadata


class FeatureFile(NamedTuple):
    ids: list[str]
    features: np.ndarray  # (n, embed_dim) float32
    weights: str | None  # weights_id of the model that made them; the reference's files do not say


def write_features(file: Path, ids: Sequence[str], features: np.ndarray, weights: str, key: str) -> None:
    """Writes the features (n, embed_dim) in the format of the file's suffix; `key` is one of KEYS."""
    if file.suffix == ".npy":
        with replacing_file(file) as aside, aside.open("wb") as out:
            np.save(out, features.astype(np.float32))
        about = {"weights": weights, "ids": list(ids)}
        atomic_write(ids_beside(file), json.dumps(about, ensure_ascii=False))
    elif file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = pa.FixedSizeListArray.from_arrays(features.astype(np.float32).ravel(), features.shape[1])
        table = pa.table({"id": list(ids), "feature": rows}).replace_schema_metadata({WEIGHTS: weights})
        with replacing_file(file) as aside:
            pq.write_table(table, aside)
    else:
        _check_suffix(file)
        with replacing_file(file) as aside, aside.open("w", encoding="utf-8") as out:
            for name, row in zip(ids, features, strict=True):
                line = {key: plain_id(name), "feature": row.tolist()}
                out.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_features(file: Path, weights: str | None = None) -> FeatureFile:
    """The features in the file; UserError when they are broken, or are said to be of other weights than `weights`."""
    _check_suffix(file)
    if not file.exists():
        raise UserError(
            f"{file}: no such file of features; `python -m clip_core.evaluate.predictions features` writes one"
        )
    try:
        found = {".npy": _read_npy, ".parquet": _read_parquet, ".jsonl": _read_jsonl}[file.suffix](file)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a file of features ({error}); write it again") from None
    if len(found.ids) != len(found.features):
        raise UserError(f"{file}: {len(found.features)} rows of features for {len(found.ids)} ids; write it again")
    if len(set(found.ids)) < len(found.ids):
        twice = next(name for place, name in enumerate(found.ids) if name in found.ids[:place])
        raise UserError(f"{file}: the id {twice} is there twice; write it again")
    is_finite = np.isfinite(found.features @ np.ones(found.features.shape[1], dtype=np.float32))
    if not is_finite.all():
        raise UserError(f"{file}: the feature of {found.ids[int(is_finite.argmin())]} holds NaN or infinity")
    if weights and found.weights and found.weights != weights:
        raise UserError(f"{file}: features of the weights {found.weights}, not of {weights}; write them again")
    return found


def ids_beside(file: Path) -> Path:
    """Where the ids of a `.npy` file lie."""
    return file.with_suffix(".ids.json")


def _read_npy(file: Path) -> FeatureFile:
    try:
        about = json.loads(ids_beside(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: its ids are missing: {ids_beside(file)}, which was written with it") from None
    features = np.load(file, mmap_mode="r", allow_pickle=False)
    if features.ndim != 2:
        raise UserError(f"{file}: an array of shape {features.shape}, and (rows, numbers) is wanted")
    return FeatureFile(about["ids"], features, about["weights"])


def _read_parquet(file: Path) -> FeatureFile:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    values = table["feature"].combine_chunks()
    features = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(table), -1)
    weights = (table.schema.metadata or {}).get(WEIGHTS, b"").decode()
    return FeatureFile(table["id"].to_pylist(), features, weights or None)


def _read_jsonl(file: Path) -> FeatureFile:
    ids: dict[Id, int] = {}
    rows: list[np.ndarray] = []
    for line, record in read_records(file):
        key = next((key for key in KEYS if key in record), None)
        if key is None or not isinstance(record.get("feature"), list):
            raise UserError(f"{file}, line {line}: without {' or '.join(KEYS)}, or without a list `feature`")
        if (first := ids.setdefault(record[key], line)) != line:
            raise UserError(f"{file}, line {line}: the id {record[key]} is there already, in line {first}; remove one")
        try:
            rows.append(np.array(record["feature"], dtype=np.float32))
        except (ValueError, TypeError):
            raise UserError(f"{file}, line {line}: `feature` is no list of numbers") from None
        if rows[-1].shape != rows[0].shape:
            raise UserError(f"{file}, line {line}: {rows[-1].size} numbers, and {rows[0].size} in the lines before")
    if not rows:
        raise UserError(f"{file}: no features in it")
    return FeatureFile([str(name) for name in ids], np.stack(rows), None)


def _check_suffix(file: Path) -> None:
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file}: features are kept as {', '.join(SUFFIXES)}; name the file so")
