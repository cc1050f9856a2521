"""/v1 for other programs: embeddings as the field's clients ask for them, search and classification."""

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
from fastapi import APIRouter, Request, Response, Security
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from clip_core.inference.calibration import Calibration
from clip_core.inference.prompts import templates_of, unit
from clip_core.serve.pictures import Galleries
from clip_core.serve.samples import Sampler
from clip_core.serve.shapes import (
    DATA_URL,
    MAX_FOUND,
    MAX_INPUTS,
    MODEL,
    ClassifyAnswer,
    ClassifyQuestion,
    Embeddings,
    EmbeddingsQuestion,
    Problem,
    SearchAnswer,
    SearchQuestion,
)
from clip_core.serve.uploads import UPLOAD, Uploads
from clip_core.serve.upstream import DEADLINE, PATIENCE, Caller, Upstream

DECODED_AT_ONCE = 2**18  # characters of base64, a multiple of four: meanwhile nobody else has Python


BEARER = HTTPBearer(auto_error=False, description="a key of the server's file")  # the guard of `edge` asks for it


def api_of(upstream: Upstream, galleries: Galleries, wants_keys: bool, sampler: Sampler | None) -> APIRouter:
    """The routes of /v1."""
    router = APIRouter(
        prefix="/v1",
        route_class=Uploads,
        dependencies=[Security(BEARER)] if wants_keys else [],
        responses={
            "4XX": {"model": Problem, "description": "The caller's mistake"},
            "5XX": {"model": Problem, "description": "Not now (503, with Retry-After), or a fault of the server"},
        },
    )

    @router.post("/embeddings", response_model=Embeddings, openapi_extra=UPLOAD)
    async def embeddings(question: EmbeddingsQuestion, request: Request) -> Response:
        given = [question.input] if isinstance(question.input, str) else question.input
        items = await _items({f"input[{place}]": item for place, item in enumerate(given)})
        async with upstream.turn(PATIENCE):
            features, release = await upstream.encode(items, Caller.of(request))
        _check_release(question.model, release)
        if question.dimensions not in (None, width := features.shape[1]):
            raise HTTPException(400, f"dimensions: {question.dimensions} are not to be had; the features have {width}")
        body = await _embeddings(features, release, question.encoding_format)
        return Response(body, media_type="application/json")

    @router.post("/search", openapi_extra=UPLOAD)
    async def search(question: SearchQuestion, request: Request) -> SearchAnswer:
        weights = {"text": question.text_weight, "image": question.image_weight}
        given = {name: item for name in weights if (item := getattr(question, name)) is not None}
        if not given:
            raise HTTPException(400, "text, image: one of them is wanted, or both")
        items = await _items(given, are_texts=("text",))
        async with upstream.turn(DEADLINE):
            features, release = await upstream.encode(items, Caller.of(request))
            _check_release(question.release, release)
            gallery = await galleries.first_unless(question.gallery, release)
            pictures = await galleries.pictures(release, gallery)
            wanted = unit(np.array([weights[name] for name in given], dtype=np.float32) @ features)
            are_searched = pictures.are_as(question.filter or {})
            num_pictures = int(are_searched.sum())
            end = min(question.offset + question.limit, MAX_FOUND, num_pictures)
            index = pictures.index
            search = partial(index.top_k_with, question.filter, are_searched) if question.filter else index.top_k
            # Asked for more, an approximate index may find others: all pages follow from one ranking.
            k = MAX_FOUND if index.approximate else end
            (places,), (scores,) = await asyncio.to_thread(search, queries=wanted[None], k=k)
        if sampler and question.text is not None and question.image is None and not question.offset:
            sampler.saw(question.text, release, scores[:end], features[0])
        page = slice(question.offset, end)
        found = [pictures.index.image_ids[place] for place in places[page]]
        among = num_pictures if question.image is None else None
        return SearchAnswer.model_validate(
            {
                "release": release,
                "gallery": gallery,
                "num_pictures": num_pictures,
                "hits": pictures.hits(found, scores[page], among),
                "next_offset": end if end < min(num_pictures, MAX_FOUND) else None,
            }
        )

    @router.post("/classify", openapi_extra=UPLOAD)
    async def classify(question: ClassifyQuestion, request: Request) -> ClassifyAnswer:
        labels, templates = question.labels, question.templates or templates_of("general")
        if (num_prompts := len(labels) * len(templates)) > MAX_INPUTS:
            raise HTTPException(400, f"labels times templates: {num_prompts} texts; {MAX_INPUTS} are allowed")
        prompts = {
            f"labels[{i}] in templates[{j}]": template.replace("{}", label)
            for i, label in enumerate(labels)
            for j, template in enumerate(templates)
        }
        items = await _items({"image": question.image} | prompts, are_texts=prompts)
        async with upstream.turn(PATIENCE):
            features, release = await upstream.encode(items, Caller.of(request))
            gallery = await galleries.first_unless(None, release)
            calibration = (await galleries.pictures(release, gallery)).calibration
        # As in `prompts.classifier`: a label's feature is the direction of the mean of its prompts'.
        scores = unit(features[1:].reshape(len(labels), len(templates), -1).mean(axis=1)) @ features[0]
        probabilities, shares = _probabilities(scores, calibration)
        best = [
            {"label": labels[place], "score": float(scores[place])}
            | {"probability": probabilities[place], "share": shares[place]}
            for place in np.argsort(-scores, kind="stable")
        ]
        return ClassifyAnswer.model_validate({"release": release, "labels": best})

    @router.get("/models")
    async def models() -> dict:
        names = [MODEL, *([upstream.release] if upstream.release else [])]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "clip_core"} for name in names]
        return {"object": "list", "data": data}

    return router


def _probabilities(scores: np.ndarray, calibration: Calibration | None) -> tuple[Sequence, Sequence]:
    """That each label is right: whatever the others are, and if just one is right; None without a calibration.

    Its odds are exp(slope * cosine + b); if just one label is right, each is it by its share of the odds.
    """
    if calibration is None:
        return (none := [None] * len(scores)), none
    odds = np.exp(calibration.slope * (scores - scores.max()).astype(np.float64))
    return calibration.probability(scores, len(scores)).tolist(), (odds / odds.sum()).tolist()


def _check_release(wanted: str | None, release: str) -> None:
    if wanted not in (None, MODEL, release):
        raise HTTPException(409, f"release {wanted} does not serve (any more): {release} does; begin again")


async def _items(given: Mapping[str, str], are_texts: Collection[str] = ()) -> dict[str, str | bytes]:
    """The texts as they are, the pictures' bytes."""
    return {
        name: await asyncio.to_thread(_picture_in, name, item)
        if name not in are_texts and re.match(DATA_URL, item)
        else item
        for name, item in given.items()
    }


def _picture_in(name: str, url: str) -> bytes:
    start = url.index(",") + 1
    parts = range(start, len(url), DECODED_AT_ONCE)
    try:
        if (len(url) - start) % 4:
            raise binascii.Error("its length is no multiple of 4")
        return b"".join(binascii.a2b_base64(url[at : at + DECODED_AT_ONCE], strict_mode=True) for at in parts)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(400, f"{name}: not base64: {error}") from None


async def _embeddings(features: np.ndarray, release: str, encoding_format: str) -> bytes:
    """The answer, a row at a time: a long one in one go would keep all others waiting."""
    start = json.dumps({"object": "list", "model": release, "usage": {"prompt_tokens": 0, "total_tokens": 0}})
    rows = []
    for index, row in enumerate(features.astype("<f4")):
        embedding = row.tolist() if encoding_format == "float" else base64.b64encode(row.tobytes()).decode()
        rows.append(json.dumps({"object": "embedding", "index": index, "embedding": embedding}))
        await asyncio.sleep(0)
    return f'{start[:-1]}, "data": [{", ".join(rows)}]}}'.encode()
