"""DVC stage: the weights that stage 1 starts from: a warm start here, or the files that `params.init` names."""

from pathlib import Path
from typing import TYPE_CHECKING

from stages.command import run

if TYPE_CHECKING:
    from clip_core.config import Params, WarmStart
    from clip_core.data.store import Store


def main(packed: Path, out: Path, curves: Path, params_file: Path = Path("params.yaml")) -> None:
    from clip_core.config import WarmStart
    from clip_core.data.store import open_store
    from clip_core.params_file import load_params
    from clip_core.train.loop import check_batches

    params, store = load_params(params_file), open_store(packed / "train")
    warm_up = {"init.warm_start": params.init.warm_start} if isinstance(params.init, WarmStart) else {}
    check_batches(warm_up | {"stage1": params.stage1, "stage2": params.stage2}, store.pairs)
    if isinstance(params.init, WarmStart):
        warm_start(params, params.init, store, out, curves)
    else:
        from_elsewhere(params, out, curves)


def warm_start(params: "Params", init: "WarmStart", store: "Store", out: Path, curves: Path) -> None:
    """The image tower trained as an English CLIP on the training pictures."""
    from clip_core.data.captions import texts_of
    from clip_core.image import Preprocessing
    from clip_core.model.clip import make_clip
    from clip_core.model.contract import Architecture, Made, hash_of
    from clip_core.model.registry import shape_of
    from clip_core.model.text_start import text_start
    from clip_core.model.weights import save_weights
    from clip_core.train.backward import settled
    from clip_core.train.checkpoint import fingerprint, work_folder
    from clip_core.train.log import publish_curves
    from clip_core.train.warm_start import english_clip, take_image_side

    init = init.model_copy(update={"warm_start": settled(init.warm_start)})
    shape = shape_of(params.model)
    captions = [text for section in (params.stage1, params.stage2) for text in texts_of(store.pairs, section.captions)]
    bert_folder = None if init.bert_folder is None else str(Path(init.path) / init.bert_folder)
    start = text_start(shape, params.model.context_length, bert_folder, captions)
    architecture = Architecture(
        image_tower=shape.image_tower,
        text_tower=start.architecture,
        embed_dim=shape.embed_dim,
        image_size=params.model.image_size,
        context_length=params.model.context_length,
        preprocessing=Preprocessing(),
        matryoshka=params.model.matryoshka,
    )
    parts = params.model, init, params.seed, start.tokenizer_json
    data = hash_of(store.manifest)
    with work_folder("init", fingerprint(*parts, data, start.origin)) as work:
        model = make_clip(architecture, params.seed)
        start.fill(model.text_tower)
        take_image_side(model, english_clip(init.warm_start, architecture, store, work, params.seed))
        made = Made(stage="init", params=hash_of(*parts), data=data, parent=None, text_tower=start.origin)
        save_weights(model, start.tokenizer_json, out, made)
        publish_curves(work, curves)


def from_elsewhere(params: "Params", out: Path, curves: Path) -> None:
    """Weights that nothing was trained for here: the curve is empty."""
    from clip_core.config import FromTowers, FromWeights
    from clip_core.files import atomic_write
    from clip_core.model.contract import Made, hash_of
    from clip_core.model.start import start_from_towers, start_from_weights
    from clip_core.model.weights import save_weights
    from clip_core.train.log import NO_STEPS

    if isinstance(params.init, FromTowers):
        start = start_from_towers(params.model, params.init, params.seed)
    else:
        assert isinstance(params.init, FromWeights)
        start = start_from_weights(params.model, params.init)
    made = Made(
        stage="init",
        params=hash_of(params.model, params.init, params.seed),
        data="none",
        parent=start.parent,
        text_tower=start.origin,
    )
    save_weights(start.model, start.tokenizer_json, out, made)
    atomic_write(curves / "train.csv", NO_STEPS)
    print(f"init: starts from {start.origin}", flush=True)


if __name__ == "__main__":
    run(main)
