"""DVC stage: the weights that stage 1 starts from, with the image tower warmed up as an English CLIP."""

from pathlib import Path

from stages.command import run


def main(packed: Path, out: Path, curves: Path, params_file: Path = Path("params.yaml")) -> None:
    from clip_core.data.captions import texts_of
    from clip_core.data.store import open_store
    from clip_core.image import Preprocessing
    from clip_core.model.clip import make_clip
    from clip_core.model.contract import Architecture, Made, hash_of
    from clip_core.model.registry import shape_of
    from clip_core.model.text_start import text_start
    from clip_core.model.weights import save_weights
    from clip_core.params_file import load_params
    from clip_core.train.checkpoint import fingerprint, work_folder
    from clip_core.train.log import publish_curves
    from clip_core.train.warm_start import english_clip, take_image_side

    params = load_params(params_file)
    shape = shape_of(params.model)
    store = open_store(packed / "train")
    captions = [text for section in (params.stage1, params.stage2) for text in texts_of(store.pairs, section.captions)]
    start = text_start(shape, params.model.context_length, params.init.bert_folder, captions)
    architecture = Architecture(
        image_tower=shape.image_tower,
        text_tower=start.architecture,
        embed_dim=shape.embed_dim,
        image_size=params.model.image_size,
        context_length=params.model.context_length,
        preprocessing=Preprocessing(),
        matryoshka=params.model.matryoshka,
    )
    parts = params.model, params.init, params.seed, start.tokenizer_json
    data = hash_of(store.manifest)
    with work_folder("init", fingerprint(*parts, data, start.origin)) as work:
        model = make_clip(architecture, params.seed)
        start.fill(model.text_tower)
        take_image_side(model, english_clip(params.init.warm_start, architecture, store, work, params.seed))
        made = Made(stage="init", params=hash_of(*parts), data=data, parent=None, text_tower=start.origin)
        save_weights(model, start.tokenizer_json, out, made)
        publish_curves(work, curves)


if __name__ == "__main__":
    run(main)
