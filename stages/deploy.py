"""DVC stage: a release, proved on a real Triton server. Making it public is no stage: serve/rollout.py."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clip_core.config.deploy import Deploy
from clip_core.config.export import Precision, Width
from clip_core.config.index import TopK
from clip_core.config.section import Section, Share
from stages.command import run

LOG = Path(".work/deploy/triton.log")
GALLERY = "test"  # the pictures that the page shows: those of the test


class Params(Section):
    deploy: Deploy
    top_k: Annotated[TopK, Field(alias="index.top_k")]
    width: Annotated[Width, Field(alias="export.width")]
    precision: Annotated[Precision, Field(alias="export.precision")]
    max_recall_difference: Annotated[Share, Field(alias="export.max_recall_difference")]


def main(
    params: Params,
    onnx: Path,
    index: Path,
    model: Path,
    packed: Path,
    offline: Path,
    release: Path,
    report: Path,
) -> None:
    from clip_core.data.store import open_store
    from clip_core.evaluate.benchmark import questions, read_benchmark
    from clip_core.files import atomic_write, replacing_folder
    from clip_core.inference.predictor import load
    from clip_core.serve.assemble import Gallery, assemble
    from clip_core.serve.deploy import prove
    from clip_core.serve.golden import Seen, make_golden
    from clip_core.serve.index import read_index
    from clip_core.serve.release import seal
    from clip_core.serve.truth import make_truth

    predictor, store = load(model, width=params.width), open_store(packed / "test")
    benchmark = read_benchmark(store)
    asked = questions(benchmark, "all")
    texts = [benchmark.texts[i] for i in asked.asking_texts]
    metrics = json.loads(offline.read_text(encoding="utf-8"))["all"]
    truth = make_truth(predictor, store, texts, asked.right_images, metrics)
    golden = make_golden(predictor, texts, {GALLERY: Seen(store, truth.image_features)}, params.deploy, params.top_k)
    is_exact = params.precision == "fp32" and read_index(index).approximate is None
    allowed = None if is_exact else params.max_recall_difference
    with replacing_folder(release) as aside:
        release_id = assemble(
            onnx, {GALLERY: Gallery(store.folder, index)}, golden, params.top_k, params.deploy.triton, aside
        )
        proof = prove(aside, release_id, truth, allowed, params.deploy.num_timed, LOG)
        seal(aside, truth.weights_id, (GALLERY,))
    parity = json.loads((onnx / "parity.json").read_text(encoding="utf-8"))
    atomic_write(report, json.dumps(proof | {"parity": parity}, indent=1) + "\n")
    print(json.dumps(proof, indent=1))


if __name__ == "__main__":
    run(main)
