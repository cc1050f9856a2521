"""DVC stage: the Triton model repository, proved on a real Triton server."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clip_core.config.deploy import Deploy
from clip_core.config.export import Width
from clip_core.config.index import TopK
from clip_core.config.section import Section
from stages.command import run


class Params(Section):
    deploy: Deploy
    top_k: Annotated[TopK, Field(alias="index.top_k")]
    width: Annotated[Width, Field(alias="export.width")]


def main(
    params: Params,
    onnx: Path,
    index: Path,
    model: Path,
    packed: Path,
    offline: Path,
    repository: Path,
    report: Path,
) -> None:
    from clip_core.data.store import open_store
    from clip_core.evaluate.benchmark import questions, read_benchmark
    from clip_core.files import atomic_write, replacing_folder
    from clip_core.inference.predictor import load
    from clip_core.serve.deploy import prove
    from clip_core.serve.golden import make_golden
    from clip_core.serve.model_repository import assemble
    from clip_core.serve.truth import make_truth

    predictor, store = load(model, width=params.width), open_store(packed / "test")
    benchmark = read_benchmark(store)
    asked = questions(benchmark, "all")
    texts = [benchmark.texts[i] for i in asked.texts]
    metrics = json.loads(offline.read_text(encoding="utf-8"))["all"]
    truth = make_truth(predictor, store, texts, asked.right_images, metrics)
    golden = make_golden(truth, predictor, store, params.deploy, params.top_k)
    with replacing_folder(repository) as aside:
        assemble(onnx, index, golden, params.top_k, aside)
        proof = prove(aside, repository.parent / "live" / "deploy", golden, truth, params.deploy.num_timed)
    parity = json.loads((onnx / "parity.json").read_text(encoding="utf-8"))
    atomic_write(report, json.dumps(proof | {"parity": parity}, indent=1) + "\n")
    print(json.dumps(proof, indent=1))


if __name__ == "__main__":
    run(main)
