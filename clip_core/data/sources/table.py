"""A user's own pairs: tables of captions, with pictures in files, on the web or in the tables themselves."""

from pathlib import Path
from types import ModuleType

from clip_core.config.sources import TableSource
from clip_core.data.pairs import COLUMNS, ORIGIN
from clip_core.data.sources import MEASURED, Harvest, Part, table_csv, table_jsonl, table_parquet
from clip_core.data.sources.fetch import ask_again
from clip_core.data.sources.table_files import files_of, is_one_file, part_name
from clip_core.data.sources.table_pictures import Pictures
from clip_core.data.sources.table_records import Span, names_of
from clip_core.data.sources.table_rows import Judge, pair_of, row_of, shown
from clip_core.errors import UserError

READERS = {".csv": table_csv, ".tsv": table_csv, ".jsonl": table_jsonl, ".parquet": table_parquet}
ALONE = "alone"  # in a part that is the only one: without a pair in it there is none at all
SHOWN = ("image_id", "text_id", "caption")


def parts_of(data: TableSource) -> list[Part]:
    """One part a span of a table.

    The digest of a part's own records stands in `at`, so that a record more at the end of a file is work for the last
    part alone; a parquet file, which may hold pictures, decides as a whole.
    """
    names, found = names_of(data), []
    for file in files_of(data):
        spans = _reader_of(file).spans_of(file, names)
        found += [(file, number, span) for number, span in enumerate(spans)]
    ask_again()
    alone = ALONE if len(found) == 1 else ""
    parts = []
    for file, number, span in found:
        name = file.relative_to(data.path).as_posix()
        reads = (file,) if _reader_of(file) is table_parquet else ()
        parts.append(Part(part_name(name, number), reads, (name, alone, *span)))
    return parts


def harvest(data: TableSource, part: Part) -> Harvest:
    """The pairs of the part. A record that can not be a pair is refused by itself; a file that can not be read, whole.

    In valid and test a record without caption is a picture that no text names, one without image a text that has none.
    """
    import pandas as pd

    name, alone, *span = part.at
    file, pictures = Path(data.path, str(name)), Pictures(data)
    records = _reader_of(file).records_of(file, Span(*span), names_of(data))  # ty: ignore[invalid-argument-type]
    rows = [row_of(record, pictures) for record in records]
    counts = pictures.fetch([row.picture.url for row in rows if row.picture and row.picture.url])
    judge, pairs, rejected = Judge(data, pictures), [], []
    place = "line" if is_one_file(data) else f"{name}/line"
    for row in rows:
        if reason := judge.fault_of(row):
            rejected.append(shown(row) | {"reason": reason, "file": str(file)})
        else:
            pairs.append(pair_of(row, f"{place}-{row.line}", data))
    if alone and not any(pair["image_id"] and pair["text_id"] for pair in pairs):
        first = f"line {rejected[0]['line']}, {rejected[0]['reason']}" if rejected else "there is none"
        raise UserError(f"{file}: not one of its {len(rows)} records is a pair; the first: {first}")
    return Harvest(
        pairs=pd.DataFrame(pairs, columns=[name for name in COLUMNS if name not in MEASURED]),
        images=pictures.in_order(judge.by_id),
        rejected=pd.DataFrame(rejected, columns=[*ORIGIN, *SHOWN]),
        more=counts,
        files=pictures.looked_for(),
    )


def _reader_of(file: Path) -> ModuleType:
    return READERS[file.suffix.lower()]
