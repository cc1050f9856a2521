"""Files that the challenges score: MUGE's retrieval and ELEVATER's classification."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from clip_core.errors import UserError
from clip_core.evaluate.records import plain_id
from clip_core.files import replacing_file

ROWS_AT_ONCE = 4096
DECIMALS = 6


def write_muge(file: Path, text_ids: Sequence[str], image_ids: Sequence[str], places: np.ndarray) -> None:
    """A line `{"text_id": 7, "image_ids": [...]}` for each text: the pictures at its `places` (texts, k)."""
    names = [plain_id(name) for name in image_ids]
    if len(set(names)) < len(names):
        raise UserError(
            f"{file}: two pictures have the same id without the name of their split; they need ids of their own"
        )
    with replacing_file(file) as aside, aside.open("w", encoding="utf-8") as out:
        for text_id, row in zip(text_ids, places, strict=True):
            line = {"text_id": plain_id(text_id), "image_ids": [names[place] for place in row]}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_elevater(
    file: Path, about: dict[str, object], logits: np.ndarray, index: Sequence[int] | None = None
) -> None:
    """The probabilities of each picture's classes as ELEVATER takes them, to six decimals.

    `logits` (pictures, classes) are cosines times exp(logit_scale), which the reference takes for 100. `index` puts the
    pictures into the official order (`index.json` of a data set). `about` is what `about_model` gives.
    """
    order = np.arange(len(logits)) if index is None else np.asarray(index)
    if sorted(order.tolist()) != list(range(len(logits))):
        raise UserError(
            f"{file}: the index has {len(order)} places, and must name each of the {len(logits)} pictures once"
        )
    head = json.dumps(about, ensure_ascii=False)[:-1]
    with replacing_file(file) as aside, aside.open("w", encoding="utf-8") as out:
        out.write(f'{head}, "predictions": [[')
        for place, row in enumerate(_rows(logits, order)):
            out.write((", " if place else "") + json.dumps(row))
        out.write("]]}")


def about_model(model_name: str, dataset_name: str, num_params: int, num_visual_params: int) -> dict[str, object]:
    """What ELEVATER wants to know of a model that was not trained for the data set, in the reference's order."""
    return {
        "model_name": model_name,
        "dataset_name": dataset_name,
        "num_trainable_params": 0,
        "num_params": num_params,
        "num_visual_params": num_visual_params,
        "num_backbone_params": num_params,
        "n_shot": 0,
        "rnd_seeds": [123],
    }


def _rows(logits: np.ndarray, order: np.ndarray) -> Iterator[list[float]]:
    for start in range(0, len(order), ROWS_AT_ONCE):
        some = logits[order[start : start + ROWS_AT_ONCE]].astype(np.float32)
        odds = np.exp(some - some.max(axis=1, keepdims=True))
        for row in (odds / odds.sum(axis=1, keepdims=True)).tolist():
            yield [round(value, DECIMALS) for value in row]


def read_elevater(file: Path) -> np.ndarray:
    """The probabilities (pictures, classes) of a submission to ELEVATER; UserError with the place of what is wrong."""
    try:
        (rows,) = json.loads(file.read_text(encoding="utf-8"))["predictions"]
        lengths = [len(row) for row in rows]
    except OSError as error:
        raise UserError(f"{file}: can not be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: not a submission to ELEVATER ({error!r:.80}): predictions [[[...], ...]] are wanted"
        ) from None
    if wrong := [place for place, length in enumerate(lengths) if length != lengths[0]]:
        raise UserError(f"{file}: picture {wrong[0]} has {lengths[wrong[0]]} classes, and the first has {lengths[0]}")
    try:
        scores = np.array(rows, dtype=np.float64)
        is_finite = np.isfinite(scores).all(axis=1)
    except (ValueError, TypeError, np.exceptions.AxisError):
        raise UserError(f"{file}: predictions hold something that is no number") from None
    if not is_finite.all():
        raise UserError(f"{file}: the probabilities of picture {int(is_finite.argmin())} hold NaN or infinity")
    return scores
