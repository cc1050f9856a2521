"""Golden queries: questions with torch's answers, which travel inside a release and are asked before it serves."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clip_core.config.deploy import Deploy
from clip_core.errors import UserError
from clip_core.image import read_image
from clip_core.serve.index import same_ranking
from clip_core.serve.queries import Found, classify, encode_images, encode_texts, release_behind, search, similar

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

    from clip_core.data.store import Store
    from clip_core.inference.predictor import Predictor


FORGIVEN = 0.05  # of an approximate index's recall, as golden queries are few


class Seen(NamedTuple):
    """A gallery as torch sees it."""

    store: "Store"
    features: np.ndarray  # (images, embed_dim)


class Golden(NamedTuple):
    weights_id: str
    texts: list[str]
    text_features: np.ndarray  # (texts, embed_dim)
    images: list[bytes]  # encoded
    image_features: np.ndarray  # (images, embed_dim)
    # By gallery, for each text and then each image the true scores of all that may be found.
    rankings: dict[str, list[dict[str, float]]]
    max_difference: float  # allowed of a feature; of a score, twice that
    approximate: Mapping[str, float] = {}  # galleries so searched, with the recall that their index was built with


class WrongAnswers(UserError):
    """What a served model answers is not what torch computes: the release is refused."""


def make_golden(
    predictor: "Predictor", texts: Sequence[str], galleries: Mapping[str, Seen], params: Deploy, k: int
) -> Golden:
    """Torch's answers for `params.num_golden` of the texts and as many pictures (PNG and JPEG by turns)."""
    asked = [texts[place] for place in spread(params.num_golden, len(texts))]
    features = predictor.encode_texts(asked)
    stores = [gallery.store for gallery in galleries.values()]
    images = [image for store in stores for image in _some_of(store, -(-params.num_golden // len(stores)))]
    images = [_as_jpeg(image) if place % 2 else image for place, image in enumerate(images)]
    image_features = predictor.encode_images(images)
    queries, margin = [*features, *image_features], params.max_feature_difference
    return Golden(
        weights_id=predictor.weights_id,
        texts=asked,
        text_features=features,
        images=images,
        image_features=image_features,
        rankings={
            name: rankings_of(gallery.store.image_ids, gallery.features, queries, k, margin)
            for name, gallery in galleries.items()
        },
        max_difference=params.max_feature_difference,
    )


def rankings_of(
    image_ids: Sequence[str], features: np.ndarray, queries: Sequence[np.ndarray], k: int, max_difference: float
) -> list[dict[str, float]]:
    """For each query the scores of all pictures that may be among its `k` best."""
    rankings, k = [], min(k, len(features))
    for scores in (features @ query for query in queries):
        least = np.partition(scores, -k)[-k] - 2 * max_difference
        rankings.append({image_ids[place]: float(scores[place]) for place in np.flatnonzero(scores >= least)})
    return rankings


def _some_of(store: "Store", num: int) -> list[bytes]:
    return [store.image_bytes(place) for place in spread(num, len(store))]


def write_golden(golden: Golden, folder: Path) -> None:
    """Writes the golden queries into the new folder `folder`."""
    folder.mkdir()
    np.save(folder / "text_features.npy", golden.text_features)
    np.save(folder / "image_features.npy", golden.image_features)
    for place, image in enumerate(golden.images):
        (folder / f"image-{place:03d}").write_bytes(image)
    facts = {
        name: getattr(golden, name) for name in ("weights_id", "texts", "rankings", "max_difference", "approximate")
    }
    (folder / "golden.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_golden(folder: Path) -> Golden:
    """The golden queries in `folder`."""
    if not (folder / "golden.json").exists():
        raise UserError(f"{folder}: a release without golden queries is not served; `dvc repro deploy` makes them")
    facts = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    return Golden(
        **facts,
        text_features=np.load(folder / "text_features.npy", allow_pickle=False),
        images=[file.read_bytes() for file in sorted(folder.glob("image-*"))],
        image_features=np.load(folder / "image_features.npy", allow_pickle=False),
    )


def probe(client: "InferenceServerClient", golden: Golden, release: str, suffix: str = "") -> dict[str, float]:
    """Asks the models named `clip_text<suffix>` and so on; returns the largest differences from torch.

    Raises WrongAnswers that lists all that is wrong, as answers of another release than `release`.
    """
    from tritonclient.utils import InferenceServerException

    try:
        return _compare(client, golden, release, suffix)
    except InferenceServerException as error:
        raise WrongAnswers(f"release {release} does not answer golden queries: {error}") from None


def _compare(client: "InferenceServerClient", golden: Golden, release: str, suffix: str) -> dict[str, float]:
    asked = [*golden.texts, *(f"picture {place}" for place in range(len(golden.images)))]
    answers, wrong = [], []
    for gallery, rankings in golden.rankings.items():
        found = search(client, golden.texts, f"clip_search{suffix}", gallery)
        found += similar(client, golden.images, f"clip_similar{suffix}", gallery)
        answers += zip(asked, found, rankings, [gallery in golden.approximate] * len(asked), strict=True)
        if gallery in golden.approximate:
            share = np.mean([name in true for one, true in zip(found, rankings, strict=True) for name in one.ids])
            if not share >= (least := golden.approximate[gallery] - FORGIVEN):
                wrong.append(f"gallery {gallery}: {share:.3f} of what is found is right, {least:.3f} is asked")
    judged = classify(client, golden.images, golden.texts, ["{}"], f"clip_classify{suffix}")  # a text is its own label
    differences = {
        "text_features": _largest(encode_texts(client, golden.texts, f"clip_text{suffix}"), golden.text_features),
        "image_features": _largest(encode_images(client, golden.images, f"clip_image{suffix}"), golden.image_features),
        "label_scores": _largest(judged.scores, golden.image_features @ golden.text_features.T),
        # NaN is wrong, max() loses it
        "scores": float(np.max([_score_difference(one, ranking) for _, one, ranking, _ in answers])),
    }
    allowed = dict.fromkeys(differences, golden.max_difference) | dict.fromkeys(
        ("scores", "label_scores"), 2 * golden.max_difference
    )
    wrong += [
        f"{name} differ by {value:.2e}, allowed {allowed[name]:.0e}"
        for name, value in differences.items()
        if not value <= allowed[name]
    ]
    for model in ("clip_text", "clip_image", "clip_classify"):
        behind = release_behind(client, f"{model}{suffix}", golden.texts[0].encode(), golden.images[0])
        if behind != release:
            wrong.append(f"{model} is of release {behind}")
    for text, one, ranking, is_approximate in answers:
        if one.release != release:
            wrong.append(f"{text}: answered by release {one.release}, not {release}")
        elif not is_approximate and not is_ranked_so(one, ranking, 2 * golden.max_difference):
            wrong.append(f"{text}: found {', '.join(one.ids[:3])} ...; torch finds {', '.join(_best(ranking)[:3])} ...")
    if wrong:
        raise WrongAnswers(f"release {release} answers golden queries wrongly:\n  " + "\n  ".join(wrong))
    return differences


def is_ranked_so(found: Found, ranking: dict[str, float], margin: float) -> bool:
    """Whether the ids stand in the order of their true scores; scores within `margin` may change places."""
    if len(set(found.ids)) < len(found.ids) or not set(found.ids) <= set(ranking):
        return False
    places = [list(ranking).index(name) for name in found.ids]
    return bool(same_ranking(np.array([[*ranking.values()]]), np.array([places], dtype=np.int64), margin)[0])


def _best(ranking: dict[str, float]) -> list[str]:
    return sorted(ranking, key=lambda name: -ranking[name])


def _largest(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.abs(found - true).max()) if found.shape == true.shape else float("inf")


def _score_difference(found: Found, ranking: dict[str, float]) -> float:
    """Of the pictures that were found rightly; the others are a matter of the ranking."""
    known = [(score, ranking[name]) for name, score in zip(found.ids, found.scores, strict=True) if name in ranking]
    return float(np.max([abs(float(score) - true) for score, true in known], initial=0.0))


def spread(num: int, among: int) -> list[int]:
    """At most `num` places, evenly spread."""
    return sorted({round(place) for place in np.linspace(0, among - 1, num)}) if among else []


def _as_jpeg(image: bytes) -> bytes:
    buffer = io.BytesIO()
    read_image(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
