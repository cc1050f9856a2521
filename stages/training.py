"""What the stages `stage1` and `stage2` have in common: all but the set-up."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from clip_core.config.intervals import StageInterval
from clip_core.config.loader import Loader
from clip_core.config.section import hash_of
from clip_core.config.train import ONE_DEVICE, Train
from clip_core.data.batches import NOTHING, TrainingBatches
from clip_core.data.loader import num_workers, start_workers_early
from clip_core.data.pictures import Kept
from clip_core.data.store import open_store
from clip_core.evaluate.in_training import RecallInTraining
from clip_core.model.contract import Made, read_contract, weights_id
from clip_core.model.text_start import MADE_HERE
from clip_core.model.weights import load_weights, save_weights
from clip_core.text import load_tokenizer
from clip_core.train.backward import with_precision_resolved
from clip_core.train.distributed import agree, check_ranks, gathered_model, num_ranks, process_group, rank
from clip_core.train.fingerprint import decisive
from clip_core.train.fits import refuse_what_does_not_fit
from clip_core.train.launch import launched
from clip_core.train.log import publish_curves
from clip_core.train.loop import check_batch, train
from clip_core.train.lora import merge_adapters
from clip_core.train.setup import Setup
from clip_core.train.watch import Validation
from clip_core.train.work_folder import adoptions_in, work_folder


@dataclass(frozen=True)
class Paths:
    """Where a training reads and writes."""

    packed: Path  # the stores of all splits
    start: Path  # weights
    out: Path
    curves: Path


def train_stage(
    name: str, module: str, setup: Setup, interval: StageInterval, loader: Loader, paths: Paths, on: Train = ONE_DEVICE
) -> None:
    """Trains as `setup` says; `module` is the stage's own, whose code decides the result."""
    if launched(on, module):
        return
    with process_group():
        _train_here(name, module, setup, interval, loader, paths, on)


def _train_here(
    name: str, module: str, setup: Setup, interval: StageInterval, loader: Loader, paths: Paths, on: Train
) -> None:
    setup = replace(setup, params=with_precision_resolved(setup.params))
    params = setup.params
    store, benchmark = open_store(paths.packed / "train"), open_store(paths.packed / "valid")
    is_passed_through = params.schedule.num_steps == 0
    if not is_passed_through:
        check_batch(name, params.global_batch, params.captions.language, store)
    check_ranks(name, params, on)
    contract = read_contract(paths.start)
    is_pretrained = not contract.made.text_tower.startswith(MADE_HERE)
    refuse_what_does_not_fit(name, setup, contract.architecture, is_pretrained, on)
    tokenizer = load_tokenizer(paths.start / contract.tokenizer, contract.context_length)
    fixed = setup.is_image_tower_frozen or is_passed_through
    recall = RecallInTraining(benchmark, tokenizer, contract, params.precision, is_image_side_fixed=fixed)
    teachers = [setup.teacher_folder] if setup.teacher_folder else []
    inputs = [paths.packed / "train", paths.start, *teachers]
    decides = decisive(name, module, {"seed": setup.seed, name: params}, inputs)
    agree(decides.fingerprint)
    with work_folder(decides) if rank() == 0 else nullcontext(paths.out) as work:
        pictures = setup.pictures(store, contract, keep=num_ranks() == 1)  # a rank decodes its own rows alone
        if num_workers(loader, isinstance(pictures, Kept) or setup.sees_features):
            start_workers_early()
        model = load_weights(paths.start)
        images, encode_images = setup.prepare(model, pictures, loader)
        ranks = rank(), num_ranks()
        teacher = setup.teacher(model, store, loader)
        shown = teacher.shown if teacher else NOTHING
        with TrainingBatches(store, images, tokenizer, params, setup.seed, loader, *ranks, shown) as batches:
            validation = Validation(interval.evaluate_every, recall)
            train(batches, model, encode_images, work, interval, validation, on, teacher)
        if batches.broken:
            print(f"{len(batches.broken):,} pictures could not be decoded; other rows took their place", flush=True)
        if tokenizer.num_truncated:
            print(f"{tokenizer.num_truncated:,} texts were cut off at {contract.context_length} tokens", flush=True)
        model.teacher_projection = None
        model = gathered_model(model)
        if rank():
            return
        merge_adapters(model)
        made = Made(
            stage=name,
            params=hash_of(params, setup.seed, *map(weights_id, teachers)),
            data=hash_of(store.manifest),
            parent=weights_id(paths.start),
            text_tower=contract.made.text_tower,
            adopted=tuple(str(adoption) for adoption in adoptions_in(work)),
        )
        save_weights(model, (paths.start / contract.tokenizer).read_text(encoding="utf-8"), paths.out, made)
        publish_curves(work, paths.curves)
