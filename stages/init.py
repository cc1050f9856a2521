"""DVC stage: the weights that stage 1 starts from: a warm start here, or the files that `params.init` names."""

from pathlib import Path

from clip_core.config.init import FromTowers, FromWeights, Init, WarmStart
from clip_core.config.intervals import Interval, Intervals
from clip_core.config.loader import Loader
from clip_core.config.model import Model
from clip_core.config.section import Section, Seed
from clip_core.errors import UserError
from stages.command import run


class Start(Section):
    model: Model
    init: Init


class Params(Start):
    seed: Seed


def main(
    params: Params,
    intervals: Intervals,
    loader: Loader,
    packed: Path,
    out: Path,
    curves: Path,
    text_start: Path = Path("models/text_start"),
    params_file: Path = Path("params.yaml"),
) -> None:
    check_batches_of_stages(packed, params_file, not isinstance(params.init, WarmStart))
    if isinstance(params.init, WarmStart):
        warm_start(params, params.seed, "stages.init", intervals.warm_start, loader, packed, text_start, out, curves)
    else:
        from_elsewhere(params, out, curves)


def check_batches_of_stages(packed: Path, params_file: Path, is_pretrained: bool) -> None:
    """Raises UserError where stage 1 or stage 2 has too few pictures or too little memory for its batch, early.

    It decides no bit, so what it reads is not among this stage's params: an edit there warms nothing up again.
    """
    from clip_core.data.store import open_store
    from clip_core.params_file import read_yaml
    from clip_core.train.fits import refuse_stages
    from clip_core.train.loop import check_batch

    tree, store = read_yaml(params_file), open_store(packed / "train")
    for name in ("stage1", "stage2"):
        if tree[name]["schedule"]["num_steps"] != 0:
            check_batch(name, tree[name]["global_batch"], tree[name]["captions"]["language"], store)
    refuse_stages(params_file, is_pretrained)


def warm_start(
    params: Start,
    seed: int,
    module: str,
    interval: Interval,
    loader: Loader,
    packed: Path,
    text_start: Path,
    out: Path,
    curves: Path,
) -> None:
    """The image tower trained as an English CLIP on the training pictures, beside the text side in `text_start`.

    `module` is the stage's own.
    """
    from clip_core.config.section import hash_of
    from clip_core.data.store import open_store
    from clip_core.image import Preprocessing
    from clip_core.model.clip import make_clip
    from clip_core.model.contract import Architecture, Made
    from clip_core.model.registry import shape_of
    from clip_core.model.text_start import read_text_start
    from clip_core.model.weights import save_weights
    from clip_core.train.backward import with_precision_resolved
    from clip_core.train.fingerprint import decisive
    from clip_core.train.log import publish_curves
    from clip_core.train.loop import check_batch
    from clip_core.train.warm_start import english_clip, take_image_side
    from clip_core.train.work_folder import adoptions_in, work_folder

    if not isinstance(params.init, WarmStart):
        raise UserError(f"init.from is {params.init.from_!r}: the ablation needs `init.from: warm_start`")
    init = params.init.model_copy(update={"warm_start": with_precision_resolved(params.init.warm_start)})
    store = open_store(packed / "train")
    check_batch("init.warm_start", init.warm_start.global_batch, init.warm_start.captions.language, store)
    shape = shape_of(params.model)
    start = read_text_start(text_start)
    architecture = Architecture(
        image_tower=shape.image_tower,
        text_tower=start.about.architecture,
        embed_dim=shape.embed_dim,
        image_size=params.model.image_size,
        context_length=params.model.context_length,
        preprocessing=Preprocessing(),
        matryoshka=params.model.matryoshka,
    )
    decides = decisive(
        "init",
        module,
        {"seed": seed, "model": params.model, "init": init},
        [store.folder],
        {"text start": start.sum},
    )
    with work_folder(decides) as work:
        model = make_clip(architecture, seed)
        start.give(model)
        take_image_side(model, english_clip(init.warm_start, architecture, store, seed, work, interval, loader))
        made = Made(
            stage="init",
            params=hash_of(params.model, init, seed, start.sum),
            data=hash_of(store.manifest),
            parent=None,
            text_tower=start.about.origin,
            adopted=tuple(str(adoption) for adoption in adoptions_in(work)),
        )
        save_weights(model, start.tokenizer_json, out, made)
        publish_curves(work, curves)


def from_elsewhere(params: Params, out: Path, curves: Path) -> None:
    """Weights that nothing was trained for here: the curve is empty."""
    from clip_core.config.section import hash_of
    from clip_core.files import atomic_write
    from clip_core.model.contract import Made
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
