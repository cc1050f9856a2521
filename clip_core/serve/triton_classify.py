"""Classification on Triton: pictures against labels of the caller's own, by the release's calibration."""

import re
from collections.abc import Sequence

import numpy as np
import triton_python_backend_utils as pb  # ty: ignore[import-not-found]

from clip_core.errors import UserError
from clip_core.inference.calibration import read_calibration
from clip_core.inference.prompts import templates_of, unit
from clip_core.serve.triton_edge import (
    answer,
    check_numbers,
    features_of,
    read_release,
    refusal,
    suffix_of,
    version_folder,
)

MAX_PROMPTS = 2048  # of a request


class Classify:
    """`IMAGE`, `LABELS` and if wanted `TEMPLATES` -> `scores`, `probabilities` and `shares` of the labels, as given.

    As `/v1/classify` of the gateway. Without a calibration there are no probabilities: (n, 0).
    """

    def initialize(self, args: dict[str, str]) -> None:
        check_numbers()
        self.suffix = suffix_of(args)
        self.release = read_release(version_folder(args))
        self.calibration = read_calibration(version_folder(args), None)

    def execute(self, requests: Sequence["pb.InferenceRequest"]) -> list["pb.InferenceResponse"]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: "pb.InferenceRequest") -> "pb.InferenceResponse":
        try:
            return answer(self._judge(*(_rows(request, name) for name in ("IMAGE", "LABELS", "TEMPLATES"))))
        except Exception as error:  # the edge: whatever it is, the other requests get their answers
            return refusal(error)

    def _judge(
        self, images: list[list[bytes]], labels: list[list[bytes]], templates: list[list[bytes]]
    ) -> dict[str, np.ndarray]:
        asked = [
            [[template.replace(b"{}", label) for template in some] for label in row]
            for row, some in zip(labels, templates or [_general()] * len(labels), strict=True)
        ]
        _check(labels, templates)
        classifier = self._classifier([prompts for row in asked for prompts in row])
        pictures = features_of("IMAGE", [image for (image,) in images], self.release, self.suffix)
        scores = np.einsum("nmd,nd->nm", classifier.reshape(len(labels), len(labels[0]), -1), pictures)
        nothing = np.empty((len(labels), 0), dtype=np.float32)
        probabilities, shares = self.calibration.of_labels(scores) if self.calibration else (nothing, nothing)
        return {
            "scores": scores,
            "probabilities": probabilities.astype(np.float32),
            "shares": shares.astype(np.float32),
            "release": np.full((len(labels), 1), self.release.encode(), dtype=object),
        }

    def _classifier(self, prompts: list[list[bytes]]) -> np.ndarray:
        """As `prompts.classifier`: the direction of the mean of each list's features; each prompt is encoded once."""
        places = {prompt: 0 for some in prompts for prompt in some}
        places = {prompt: place for place, prompt in enumerate(places)}
        if len(places) > MAX_PROMPTS:
            raise UserError(f"labels times templates are {len(places)} texts; {MAX_PROMPTS} are allowed")
        try:
            features = features_of("TEXT", list(places), self.release, self.suffix)
        except UserError as error:
            item = re.match(r"item (\d+): ", str(error))
            if item is None:
                raise
            prompt = list(places)[int(item[1])].decode(errors="replace")
            raise UserError(f"the label in its template, {prompt[:40]!r}: {str(error)[item.end() :]}") from None
        return unit(np.stack([features[[places[prompt] for prompt in some]].mean(axis=0) for some in prompts]))


def _rows(request: "pb.InferenceRequest", name: str) -> list[list[bytes]]:
    tensor = pb.get_input_tensor_by_name(request, name)
    return [] if tensor is None else tensor.as_numpy().tolist()


def _general() -> list[bytes]:
    return [template.encode() for template in templates_of("general")]


def _check(labels: list[list[bytes]], templates: list[list[bytes]]) -> None:
    for place, row in enumerate(labels):
        if not row or not all(label.decode(errors="replace").strip() for label in row):
            raise UserError(f"item {place}: no label, or an empty one")
    for place, row in enumerate(templates):
        if wrong := [template.decode(errors="replace") for template in row if b"{}" not in template]:
            raise UserError(f"item {place}: in the template {wrong[0]!r} no {{}} stands for the label")
