"""What img2dataset says of a tar in the files beside it: how many downloads it tried, and how many failed."""

from collections import Counter
from pathlib import Path

from clip_core.data.sources.folders import read_json
from clip_core.errors import UserError


def files_beside(tar: Path) -> tuple[Path, ...]:
    """Its statistics; where there are none, its table, which has a row for each download."""
    statistics = tar.with_name(f"{tar.stem}_stats.json")
    return tuple(path for path in (statistics, tar.with_suffix(".parquet")) if path.is_file())[:1]


def downloads_in(files: tuple[Path, ...]) -> dict[str, int]:
    """The counts in what `files_beside` found; 0 where that was nothing."""
    tried = failed = unfit = 0
    for file in files:
        counts = read_json(file) if file.suffix == ".json" else _counts_of(file)
        try:
            tried, failed, unfit = (counts[name] for name in ("count", "failed_to_download", "failed_to_resize"))
        except KeyError as error:
            raise UserError(f"{file}: no {error}. img2dataset writes it; remove the file if another did.") from None
        if not all(type(number) is int and 0 <= number < 2**53 for number in (tried, failed, unfit)):
            raise UserError(f"{file}: {tried!r}, {failed!r} and {unfit!r} are no counts. Remove the file.")
    return {"downloads_tried": tried, "downloads_failed": failed, "downloads_not_resized": unfit}


def _counts_of(table: Path) -> dict[str, int]:
    """The counts of img2dataset's statistics from its table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found: Counter[str] = Counter()
        with pq.ParquetFile(table) as file:
            for batch in file.iter_batches(columns=["status"]):
                found.update(batch["status"].to_pylist())
    except (pa.ArrowException, OSError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{table}: no table of img2dataset's: {error}. Remove the file if another wrote it.") from None
    return {"count": found.total()} | {name: found[name] for name in ("failed_to_download", "failed_to_resize")}
