"""Adds pictures to a gallery, or removes some: `python -m clip_core.serve.change GALLERY --add FOLDER --remove FILE`.

That is a new release, proved on a real Triton, for `make rollout`. Only the new pictures are encoded, by the release's
own model; all other files are links, but for a delta (delta.py).
"""

import argparse
from pathlib import Path

from clip_core.all_params import load_params
from clip_core.env import set_switches
from clip_core.errors import UserError, told_to_the_user
from clip_core.project import project_root, serving_folder
from clip_core.serve import releases
from clip_core.serve.changed import Wanted, change

DESCRIBED = ("caption", "concept_id", "family", "group", "source", "licence")  # columns of the pair table


def descriptions_in(file: Path) -> dict[str, dict[str, str]]:
    """What the CSV file says of pictures, by their ids; UserError when it has other columns, or an id twice."""
    import pandas as pd

    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8")
    except ValueError as error:  # pandas' own are such
        raise UserError(f"{file}: not a CSV file: {error}") from None
    if "image_id" not in table or not set(table.columns) <= {"image_id", *DESCRIBED}:
        raise UserError(f"{file}: columns {', '.join(table.columns)}; image_id is wanted and any of {DESCRIBED}")
    if len(twice := table.image_id[table.image_id.duplicated()]):
        raise UserError(f"{file}: {twice.iloc[0]!r} is described twice")
    return table.set_index("image_id").to_dict("index")


def ids_of(file: Path) -> list[str]:
    """The ids in the text file, one a line."""
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def main() -> None:
    """Runs the command; a mistake of the user's becomes a message and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m clip_core.serve.change", description=__doc__)
    parser.add_argument("gallery", metavar="GALLERY", help="its name")
    parser.add_argument("--add", type=Path, metavar="FOLDER", help="pictures; the id of each is its path in there")
    parser.add_argument("--described", type=Path, metavar="CSV", help=f"of them: image_id and any of {DESCRIBED}")
    parser.add_argument("--remove", type=Path, metavar="FILE", help="ids, one a line")
    parser.add_argument("--release", metavar="ID", help="default: the one that serves")
    parser.add_argument("--serving", type=Path, help="the folder of releases; default: the project's")
    parser.add_argument(
        "--max-delta",
        type=float,
        metavar="SHARE",
        help="of the base that may come or go before there is a new base; 0: at once; "
        "default: releases.max_delta of the project's params.yaml",
    )
    given = parser.parse_args()
    set_switches()
    with told_to_the_user(OSError):
        serving, keep, max_delta = serving_folder(given.serving), None, given.max_delta
        if not given.serving:
            params = load_params(project_root() / "params.yaml").releases
            keep, max_delta = params.keep, params.max_delta if max_delta is None else max_delta
        if max_delta is None or not 0 <= max_delta <= 1:
            raise UserError(f"--max-delta {max_delta}: a share from 0 to 1 is wanted, as 0.1, with --serving")
        wanted = Wanted(
            given.add,
            descriptions_in(given.described) if given.described else {},
            ids_of(given.remove) if given.remove else [],
        )
        done = change(serving, given.release, given.gallery, wanted, max_delta, keep)
        print(f"{done.num_added} pictures added, {done.num_removed} removed{', a new base' if done.is_merged else ''}")
        print(releases.announcement(serving, done.release))


if __name__ == "__main__":
    main()
