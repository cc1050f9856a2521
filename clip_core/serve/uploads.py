"""Pictures as the body of a request, for those who would rather not put them into JSON."""

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

KIND = "image/"
QUESTION = {
    "name": "question",
    "in": "query",
    "description": "where the body is a picture itself: the rest of the question",
    "content": {"application/json": {"schema": {"type": "object"}}},
}
# What such a route's OpenAPI says besides.
UPLOAD = {
    "parameters": [QUESTION],
    "requestBody": {"content": {f"{KIND}*": {"schema": {"type": "string", "format": "binary"}}}},
}


class Uploads(APIRoute):
    """A route whose body may also be a picture; the rest of the question is then JSON in the query: `?question={...}`.

    It is answered as the question with the picture as a data URL.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer, is_picture_the = super().get_route_handler(), "image"
        if self.path.endswith("/embeddings"):
            is_picture_the = "input"

        async def answer_either(request: Request) -> Response:
            for name in request.query_params.keys() - {QUESTION["name"]}:  # or `?limit=3` would be passed over
                raise _refusal(f"is all that the query may have, not {name!r}")
            if request.headers.get("content-type", "").startswith(KIND):
                rest = _rest(request.query_params.get("question", "{}"))
                url = await asyncio.to_thread(_data_url, await request.body())
                request = _with_body(request, json.dumps(rest | {is_picture_the: url}).encode())
            elif "question" in request.query_params:
                raise _refusal("goes with a picture as the body; without, all of the question is the body")
            return await answer(request)

        return answer_either


def _rest(text: str) -> dict:
    try:
        rest = json.loads(text)
    except (ValueError, RecursionError):
        rest = None
    if not isinstance(rest, dict):
        raise _refusal("a JSON object is wanted")
    return rest


def _refusal(reason: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("query", "question"), "msg": reason}])


def _data_url(picture: bytes) -> str:
    return f"data:{KIND}any;base64,{base64.b64encode(picture).decode()}"  # what is in it tells its format


def _with_body(request: Request, body: bytes) -> Request:
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]

    async def receive() -> dict:
        return {"type": "http.request", "body": body}

    headers.append((b"content-type", b"application/json"))
    return Request({**request.scope, "headers": headers}, receive)
