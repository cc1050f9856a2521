"""Asks a running `make serve`: `python -m clip_core.serve.client "一只猫"` prints the pictures found."""

import argparse
import json
import os
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

from clip_core.errors import UserError, told_to_the_user
from clip_core.project import serving_folder

TIMEOUT = 30  # seconds
KEY = "CLIP_KEY"  # the variable with the API key, where the server wants one
START = "start one in another terminal: `make serve`, or what `python -m clip_core.serve.gallery` said at its end"


def ask(url: str, text: str, top: int, gallery: str | None = None) -> dict:
    """The gateway's answer: release, gallery, milliseconds and hits (image_id, score, probability, name, image)."""
    opener = build_opener(ProxyHandler({}))  # the server is on loopback, whatever proxy is set
    question = {"text": text, "top": top} | ({} if gallery is None else {"gallery": gallery})
    try:
        request = Request(f"{url}/api/search?{urlencode(question)}")
        if key := os.environ.get(KEY):
            request.add_header("Authorization", f"Bearer {key}")
        with opener.open(request, timeout=TIMEOUT) as answer:
            return json.load(answer)
    except HTTPError as error:
        raise UserError(_reason(error)) from None
    except (URLError, TimeoutError) as error:
        raise UserError(f"no server answers at {url} ({error}); {START}") from None


def read_url(serving: Path) -> str:
    """The page of the `make serve` that serves from the folder `serving`."""
    try:
        return json.loads((serving / "running.json").read_text(encoding="utf-8"))["url"]
    except FileNotFoundError:
        raise UserError(f"{serving}: no server runs; {START}") from None


def _reason(error: HTTPError) -> str:
    try:
        answer = json.load(error)
        message, kind, request_id = answer["error"], answer["kind"], answer["id"]
    except (ValueError, KeyError, TypeError):  # not the gateway's own words
        return f"{error.url} answers {error.code} {error.reason}; the terminal of `make serve` says why"
    if kind == "overload":
        return f"the server is overloaded or not ready: {message}; try again in {error.headers['Retry-After']} s"
    if kind == "key":
        return f"{message}; set {KEY}"
    if kind == "internal":
        return f"{message} (request {request_id})"
    return message


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m clip_core.serve.client", description="finds pictures by text")
    parser.add_argument("text", help="what the pictures should show, in Chinese")
    parser.add_argument("--top", type=int, default=5, help="how many pictures (default 5)")
    parser.add_argument("--gallery", help="which pictures; default: the release's first gallery")
    parser.add_argument("--serving", type=Path, help="the folder that it serves from; default: the project's")
    parser.add_argument("--url", help="of its page; default: what that folder says")
    arguments = parser.parse_args()
    with told_to_the_user():
        url = arguments.url or read_url(serving_folder(arguments.serving))
        answer = ask(url, arguments.text, arguments.top, arguments.gallery)
    for hit in answer["hits"]:
        probability = "" if hit["probability"] is None else f"  {100 * hit['probability']:3.0f} %"
        print(f"{hit['score']:.4f}{probability}  {hit['image_id']}  {hit['name']}")
    if len(answer["hits"]) < arguments.top:
        limit = "index.top_k in params.yaml (--top-k of a gallery), or all there are"
        print(f"the release finds {len(answer['hits'])} pictures a text: {limit}", file=sys.stderr)


if __name__ == "__main__":
    main()
