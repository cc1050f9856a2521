"""Features of a folder of pictures, or of the texts or pictures of a parquet file, from a running gateway, in parts.

    python -m clip_core.serve.bulk PICTURES features/
    python -m clip_core.serve.bulk queries.parquet features/ --column caption

    features/part-00000.parquet      id, features (float32), release
    features/rejected-00000.parquet  id and reason of the part's rows that were refused
    features/job.json                of what: another input needs another folder

A part is there whole or not at all: stopped, the same command goes on with the first that is missing.
"""

import argparse
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from clip_core.config.section import hash_of
from clip_core.errors import UserError, told_to_the_user
from clip_core.files import atomic_write, replacing_file
from clip_core.serve.client import BYTES_AT_ONCE, ITEMS_AT_ONCE, Client, Refused, find_url

ROWS = 1024  # of a part
AT_ONCE = 4  # requests: the models join them to batches, and while one answers another is sent
DEADLINE = 120.0  # seconds for a request, its repetitions included

Row = tuple[str, str | bytes | Path | None]  # id and item, or where it lies


class Done(NamedTuple):
    """What a job, or a request of it, came to."""

    ids: list[str]
    features: list
    rejected: list[tuple[str, str]]  # id and reason


def run(source: Path, out: Path, url: str, column: str | None = None, rows: int = ROWS) -> tuple[int, int]:
    """Writes the features of all that `source` holds into the folder `out`; gives how many rows are there, and not.

    `column` is that of a parquet file, of texts or of pictures' bytes; the ids are the numbers of its rows, or the
    names of the files. All features are of one release; raises UserError when another one serves by now.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out}: lies in {source}, whose files are all read; name a folder outside")
    client = Client(url, deadline=DEADLINE)
    job = _job_of(source, column, rows)
    file = out / "job.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if known and known["job"] != job:
        raise UserError(f"{out}: holds features of {known['source']} as it was; name another folder, or remove it")
    release = known.get("release") or client.embed(["一"]).release
    atomic_write(file, json.dumps({"job": job, "source": str(source), "release": release}) + "\n")
    kept = rejected = 0
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for number, part in enumerate(_parts(source, column, rows)):
            place, refused = (out / f"{name}-{number:05d}.parquet" for name in ("part", "rejected"))
            if not place.exists():  # the last that is written
                starts = range(0, len(part), ITEMS_AT_ONCE)
                requests = [part[at : at + ITEMS_AT_ONCE] for at in starts]
                done = list(threads.map(lambda some: _embedded(client, some, release), requests))
                reasons = [one for each in done for one in each.rejected]
                if reasons:
                    columns = dict(zip(("id", "reason"), map(list, zip(*reasons, strict=True)), strict=True))
                    with replacing_file(refused) as aside:
                        pq.write_table(pa.table(columns), aside)
                ids = [row_id for each in done for row_id in each.ids]
                features = pa.array([row for each in done for row in each.features], pa.list_(pa.float32()))
                table = pa.table(
                    {"id": pa.array(ids, pa.string()), "features": features, "release": [release] * len(ids)}
                )
                with replacing_file(place) as aside:
                    pq.write_table(table, aside)
                print(f"  {number * rows + len(part):,} rows", flush=True)
            kept += pq.read_metadata(place).num_rows
            rejected += pq.read_metadata(refused).num_rows if refused.exists() else 0
    return kept, rejected


def _embedded(client: Client, rows: list[Row], release: str) -> Done:
    """The features of the rows that are not refused; each refusal names one, and the others are sent again."""
    items: dict[str, str | bytes] = {}
    rejected: list[tuple[str, str]] = []
    for row_id, item in rows:
        try:
            size = item.stat().st_size if isinstance(item, Path) else len(item or "")
            if 0 < size <= BYTES_AT_ONCE:
                items[row_id] = item.read_bytes() if isinstance(item, Path) else item or ""
            else:
                rejected.append((row_id, f"{size:,} bytes; {BYTES_AT_ONCE:,} are allowed" if size else "nothing there"))
        except OSError as error:  # gone, or not ours to read
            rejected.append((row_id, error.strerror or str(error)))
    while items:
        try:
            return Done([*items], client.embed([*items.values()], release).features, rejected)
        except Refused as error:
            named = re.match(r"input\[(\d+)\]: ", str(error))
            if named is None:
                raise
            refused = [*items][int(named[1])]
            rejected.append((refused, str(error)[named.end() :]))
            del items[refused]
    return Done([], [], rejected)


def _parts(source: Path, column: str | None, rows: int) -> Iterator[list[Row]]:
    if source.is_dir():
        files = _files(source)
        for start in range(0, len(files), rows):
            yield [(file.relative_to(source).as_posix(), file) for file in files[start : start + rows]]
        return
    import pyarrow.parquet as pq

    first = 0
    for batch in pq.ParquetFile(source).iter_batches(rows, columns=[column]):
        items = batch.column(0).to_pylist()
        yield [(str(first + place), item) for place, item in enumerate(items)]
        first += len(items)


def _job_of(source: Path, column: str | None, rows: int) -> str:
    """The fingerprint of what is to be done; UserError when the source is none."""
    if source.is_dir():
        files = _files(source)
        if not files:
            raise UserError(f"{source}: the folder is empty; name one with pictures")
    elif not source.is_file():
        raise UserError(f"{source}: no such folder or parquet file")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(source)
        except pa.ArrowInvalid as error:
            raise UserError(f"{source}: not a parquet file ({error}); a folder of pictures will do as well") from None
        kinds = [field.name for field in schema if _is_text_or_bytes(field.type)]
        if column not in kinds:
            raise UserError(
                f"{source}: --column {column}: columns of texts or pictures are {', '.join(kinds) or 'none'}"
            )
        files = [source]
    base = source if source.is_dir() else source.parent
    states = [(str(file.relative_to(base)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hash_of(states, column, rows)


def _is_text_or_bytes(kind: object) -> bool:
    return str(kind) in ("string", "large_string", "binary", "large_binary")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m clip_core.serve.bulk", description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="a folder of pictures, or a parquet file")
    parser.add_argument("out", type=Path, help="the folder of the parts")
    parser.add_argument("--column", help="of the parquet file: texts, or pictures as bytes")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of a part (default {ROWS})")
    parser.add_argument("--serving", type=Path, help="the folder that the gateway serves from; default: the project's")
    parser.add_argument("--url", help="of the gateway; default: what that folder says")
    arguments = parser.parse_args()
    with told_to_the_user(OSError):
        url = find_url(arguments.url, arguments.serving)
        kept, rejected = run(arguments.source, arguments.out, url, arguments.column, arguments.rows)
        told = f"{arguments.out}: features of {kept:,} rows; {rejected:,} rejected, with reasons in rejected-*.parquet"
        if not kept:
            raise UserError(told)
    print(told)


if __name__ == "__main__":
    main()
