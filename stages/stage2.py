"""DVC stage: stage 2, everything trains."""

from pathlib import Path

from stages.command import run


def main(packed: Path, start: Path, out: Path, curves: Path, params_file: Path = Path("params.yaml")) -> None:
    from clip_core.config import load_params
    from clip_core.data.batches import Pairs, decoded
    from clip_core.data.store import open_store
    from clip_core.evaluate.retrieval import quick_recall
    from clip_core.model.clip import CLIP
    from clip_core.model.contract import Made, hash_of, read_contract, release_of
    from clip_core.model.weights import load_weights, save_weights
    from clip_core.predictor import Predictor
    from clip_core.text import load_tokenizer
    from clip_core.train.checkpoint import fingerprint, work_folder
    from clip_core.train.log import publish_curves
    from clip_core.train.loop import Validation, train

    params = load_params(params_file)
    store, benchmark = open_store(packed / "train"), open_store(packed / "valid")
    contract, parent = read_contract(start), release_of(start)
    tokenizer = load_tokenizer(start / contract.tokenizer, contract.context_length)

    def recall(model: CLIP) -> dict[str, float]:
        predictor = Predictor(model, tokenizer, contract, release="in training")
        return quick_recall(predictor.encode_texts, predictor.encode_images, benchmark)

    data, validation = hash_of(store.manifest), Validation(params.stage2.evaluate_every, recall)
    with work_folder("stage2", fingerprint(params.stage2, params.seed, data, benchmark.manifest, parent)) as work:
        model = load_weights(start)
        pairs = Pairs(store, decoded(store, contract.image_size), tokenizer, params.stage2, params.seed)
        train(params.stage2, model, pairs, work, model.encode_images, validation)
        text_tower, params_hash = contract.made.text_tower, hash_of(params.stage2, params.seed)
        made = Made(stage="stage2", params=params_hash, data=data, parent=parent, text_tower=text_tower)
        save_weights(model, (start / contract.tokenizer).read_text(encoding="utf-8"), out, made)
        publish_curves(work, curves)


if __name__ == "__main__":
    run(main)
