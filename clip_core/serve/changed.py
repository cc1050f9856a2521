"""A release with other pictures in one gallery: links to the files of the one before, a delta, and a proof."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clip_core.data.store import Store, open_store
from clip_core.errors import UserError
from clip_core.files import check_space, link_file
from clip_core.inference.predictor import Predictor, encode_pictures
from clip_core.serve import lineage, releases
from clip_core.serve.assemble import Gallery, read_config, state_id
from clip_core.serve.delta import Change, write_changed
from clip_core.serve.deploy import proved
from clip_core.serve.gallery import ids_in, store_pictures
from clip_core.serve.golden import Golden, WrongAnswers, rankings_of, read_golden, spread, write_golden
from clip_core.serve.index import read_content, read_index
from clip_core.serve.pictures import INDEXES
from clip_core.serve.queries import similar
from clip_core.serve.release import STATES_ID, read_manifest, seal
from clip_core.serve.released_model import load_released
from clip_core.serve.triton import check_server

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

NUM_TEXTS = 1000  # captions by which the recall of an approximate index is measured
NUM_ASKED = 16  # of the pictures that came, and of those that went: Triton is asked for them


class Wanted(NamedTuple):
    """What is to become of a gallery."""

    added: Path | None  # a folder of pictures
    described: Mapping[str, Mapping[str, str]]  # of some of them, by id, what the pair table is to say
    removed: Sequence[str]  # ids


class Changed(NamedTuple):
    release: str
    num_added: int
    num_removed: int
    is_merged: bool  # the gallery has a new base


def change(
    serving: Path, release: str | None, name: str, wanted: Wanted, max_delta: float, keep: int | None
) -> Changed:
    """Adds a release to `serving`: the `release` (None: the one that serves) with the gallery `name` as wanted.

    See `write_changed` and `releases.add` for the others. Raises UserError when that can not be, or Triton answers
    wrongly; nothing is then added.
    """
    if (base_id := release or releases.current(serving)) is None:
        raise UserError(f"{serving}: no release serves there; `make run` makes one, or clip_core.serve.gallery does")
    base = releases.verified(serving, base_id)
    before = Gallery(base / "galleries" / name, base / INDEXES / name)
    if name not in (names := read_manifest(base).galleries):
        raise UserError(f"release {base_id} has no gallery {name}; it has {', '.join(names)}")
    _check(before, wanted)
    check_server(serving)
    check_space(serving, [before.index, *([wanted.added] if wanted.added else [])])
    with TemporaryDirectory(dir=serving) as folder:
        scratch, made = Path(folder), Path(folder, "release")
        predictor, new = load_released(base), None
        features = np.empty((0, predictor.width), dtype=np.float32)
        if wanted.added:
            new = store_pictures(wanted.added, predictor.contract, scratch / "new", wanted.described)
            features = encode_pictures(predictor, new)
        golden, k = read_golden(base / "golden"), _top_k(base)
        _link_all_but(base, (before.store, before.index, base / "golden"), made)
        after = Gallery(made / "galleries" / name, made / INDEXES / name)
        removed = dict.fromkeys(wanted.removed)
        queries = _queries(predictor, before, golden)
        delta = Change(removed, new, features)
        recall, is_merged = write_changed(before, delta, queries, k, max_delta, after, scratch)
        write_golden(_golden(golden, name, after.index, k, recall), made / "golden")
        release_id = state_id(made)
        print("Triton loads the models ...", flush=True)
        with proved(made, release_id, serving / "change.log") as (client, _):
            _prove(client, name, golden.max_difference, open_store(before.store), list(removed), new)
        seal(made, golden.weights_id, names)
        releases.add(serving, made, keep)
    lineage.follow(serving, base_id, release_id)
    return Changed(release_id, len(features), len(removed), is_merged)


def _check(gallery: Gallery, wanted: Wanted) -> None:
    """Raises UserError when nothing is to change, an id to remove is not there, one to add is, or none would stay."""
    there, removed = set(read_content(gallery.index).image_ids), set(wanted.removed)
    added = set(ids_in(wanted.added)) if wanted.added else set()
    for ids, said in (
        (removed - there, "to remove is not in the gallery"),
        (
            (there - removed) & added,
            "to add is in the gallery already; rename it, or remove the other in the same call",
        ),
        (wanted.described.keys() - added, "is described, but not among those to add"),
    ):
        if ids:
            raise UserError(f"{gallery.store.name}: picture {min(ids)!r} {said} ({len(ids)} such)")
    if not added | removed:
        raise UserError(f"{gallery.store.name}: nothing to change: no picture to add is named, and none to remove")
    if removed == there and not added:
        raise UserError(f"{gallery.store.name}: no picture would be left; a gallery has one at least")


def _top_k(release: Path) -> int:
    config = read_config(release / "models" / "clip_search" / "config.pbtxt")
    return int(config.parameters["top_k"].string_value)


def _queries(predictor: Predictor, gallery: Gallery, golden: Golden) -> np.ndarray:
    """Features of texts to measure the recall with; an approximate index is asked some of the gallery's captions."""
    if read_index(gallery.index).approximate is None:
        return golden.text_features
    texts = sorted(set(open_store(gallery.store).pairs.query("language == 'zh'").caption))
    return predictor.encode_texts([texts[place] for place in spread(NUM_TEXTS, len(texts))])


def _link_all_but(release: Path, parts: Sequence[Path], folder: Path) -> None:
    for name in read_manifest(release).files:
        file = release / name
        if any(file.is_relative_to(part) for part in parts):
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if file.name != STATES_ID:
            link_file(file, folder / name)


def _golden(golden: Golden, name: str, index: Path, k: int, recall: float) -> Golden:
    """The questions as they were, with the true answers of the changed gallery."""
    now, asked = read_index(index), (*golden.text_features, *golden.image_features)
    rankings = rankings_of(now.image_ids, now.features, asked, k, golden.max_difference)
    approximate = {name: recall} if now.approximate else {}
    return golden._replace(
        rankings={**golden.rankings, name: rankings}, approximate={**golden.approximate, **approximate}
    )


def _prove(
    client: "InferenceServerClient", name: str, margin: float, before: Store, removed: Sequence[str], new: Store | None
) -> None:
    """Asks Triton for some pictures that came, which must find themselves, and some that went, which must not."""
    places = {image_id: place for place, image_id in enumerate(before.image_ids)}
    asked = {removed[i]: before.image_bytes(places[removed[i]]) for i in spread(NUM_ASKED, len(removed))}
    came = {new.image_ids[i]: new.image_bytes(i) for i in spread(NUM_ASKED, len(new))} if new else {}
    asked |= came
    gone = set(removed) - set(new.image_ids if new else ())
    wrong = []
    for image_id, found in zip(asked, similar(client, list(asked.values()), gallery=name), strict=True):
        wrong += [f"{other} is found, which was removed" for other in gone.intersection(found.ids)]
        if image_id in came and image_id not in found.ids and found.scores[-1] < 1 - 2 * margin:  # as many are as near
            wrong.append(f"{image_id} does not find itself")
    if wrong:
        raise WrongAnswers(f"the changed gallery {name} answers wrongly:\n  " + "\n  ".join(wrong))
