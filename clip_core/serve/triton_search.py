"""Search on Triton: by a text (`clip_search`) and by a picture (`clip_similar`), in the same galleries."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb  # ty: ignore[import-not-found]

from clip_core.errors import UserError
from clip_core.serve.index import Index, read_index
from clip_core.serve.triton_edge import (
    Unavailable,
    answer,
    check_numbers,
    features_of,
    read_release,
    refusal,
    suffix_of,
    version_folder,
)


class Search:
    """Asks this release's text or image model for the features and finds the pictures that are nearest to them."""

    def initialize(self, args: dict[str, str]) -> None:
        check_numbers()
        config = json.loads(args["model_config"])
        self.kind = config["input"][0]["name"]  # TEXT or IMAGE
        self.suffix = suffix_of(args)
        self.release = read_release(version_folder(args))
        self.top_k = int(config["parameters"]["top_k"]["string_value"])
        models = Path(args["model_repository"]).parent  # a gallery's index is there once, for both models
        folders = sorted((models / f"clip_search{self.suffix}" / args["model_version"] / "galleries").iterdir())
        # pymilvus wants packages of numpy 2, which Triton's Python has not
        self.galleries = {folder.name: read_index(folder, asks_server=False) for folder in folders}

    def execute(self, requests: Sequence["pb.InferenceRequest"]) -> list["pb.InferenceResponse"]:
        responses: list = [None] * len(requests)
        asked: dict[str, list[int]] = {}  # gallery -> places of the requests
        for place, request in enumerate(requests):
            try:
                asked.setdefault(self._gallery(request), []).append(place)
            except UserError as error:
                responses[place] = refusal(error)
        for gallery, places in asked.items():
            items = [pb.get_input_tensor_by_name(requests[place], self.kind).as_numpy() for place in places]
            for place, response in zip(places, self._answers(items, self.galleries[gallery]), strict=True):
                responses[place] = response
        return responses

    def _answers(self, items: list[np.ndarray], gallery: Index) -> list["pb.InferenceResponse"]:
        """The answer to each request's items: those of requests that came together are one batch for the tower.

        When that fails, each half is asked for itself, so that a bad item fails its own request alone.
        """
        try:
            found = self._find(np.concatenate(items), gallery)  # at most max_batch_size: Triton's batcher counts items
            ends = np.cumsum([len(some) for some in items])[:-1]
            parts = [np.split(whole, ends) for whole in found.values()]
            return [answer(dict(zip(found, some, strict=True))) for some in zip(*parts, strict=True)]
        except Exception as error:  # the edge, as below
            if len(items) == 1 or isinstance(error, Unavailable):
                return [refusal(error) for _ in items]
        half = len(items) // 2
        return self._answers(items[:half], gallery) + self._answers(items[half:], gallery)

    def _find(self, items: np.ndarray, gallery: Index) -> dict[str, np.ndarray]:
        features = features_of(self.kind, items.ravel().tolist(), self.release, self.suffix)
        places, scores = gallery.top_k(features, self.top_k)
        ids = np.array([[gallery.image_ids[place].encode() for place in row] for row in places], dtype=object)
        return {"ids": ids, "scores": scores, "release": np.full((len(items), 1), self.release.encode(), dtype=object)}

    def _gallery(self, request: "pb.InferenceRequest") -> str:
        """The gallery that the request names; the first if it names none."""
        tensor = pb.get_input_tensor_by_name(request, "GALLERY")
        if tensor is None:
            return next(iter(self.galleries))
        names = {item.decode(errors="replace") for item in tensor.as_numpy().ravel()}
        if len(names) > 1 or not names <= self.galleries.keys():
            raise UserError(
                f"no gallery {', '.join(sorted(names))}: one of {', '.join(self.galleries)} is searched at a time"
            )
        return names.pop()
