"""What each side of the loader's benchmark does in a run: our loader; cn_clip's own data set; WebDataset; plain files.

The last two get cn_clip's transform and tokenizer, as there is none that is theirs.
"""

import base64
import io
import pickle
import tarfile
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from itertools import chain, count, islice, repeat
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.data import photos
from clip_core.config.loader import Loader
from clip_core.config.training import NoAugmentation
from clip_core.data.batches import TrainingBatches
from clip_core.data.pairs import COLUMNS
from clip_core.data.pictures import AsNeeded
from clip_core.data.store import StoreWriter, open_store
from clip_core.image import Preprocessing
from clip_core.text import parse_tokenizer, tokenizer_of_vocabulary

SIDE, BATCH, CONTEXT_LENGTH = 224, 64, 52
TEXT = "\u4e00\u53ea\u732b\u5750\u5728\u7a97\u53f0\u4e0a\u770b\u96e8"
Run = Callable[[], np.ndarray]


def prepare(folder: Path, num: int) -> None:
    """The same pairs for both sides: as they are, the shorter side 224, squashed to 224, and in cn_clip's LMDB."""
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    texts = [f"{TEXT}{number}" for number in range(num)]
    sizes = {"original": None, "resized": (299, SIDE), "squashed": (SIDE, SIDE)}
    for name, size in sizes.items():
        _write_store(folder / name, [_at(size, photo) for photo in photos(num)], texts)
    _write_lmdb(folder / "cn_clip", photos(num), texts)
    _write_files(folder, photos(num), texts)
    (folder / "done").touch()


def make(spec: dict) -> Run:
    """Goes on through so many pairs a run; workers go on in between until they have ready what they may."""
    sides = {"ours": _ours, "cn_clip": _cn_clip, "webdataset": _webdataset, "files": _files}
    return sides[spec["side"]](Path(spec["folder"]), spec["num"] // BATCH, spec)


def _ours(folder: Path, num_batches: int, spec: dict) -> Run:
    import cn_clip

    from tests.tiny import tiny_training

    vocabulary = Path(cn_clip.__file__).parent / "clip/vocab.txt"
    tokenizer = parse_tokenizer(tokenizer_of_vocabulary(vocabulary), CONTEXT_LENGTH)
    store = open_store(folder / spec["store"])
    pictures = AsNeeded(store, SIDE, Preprocessing(), spec["decoding"])
    params = tiny_training().model_copy(update={"global_batch": BATCH, "augmentation": NoAugmentation(name="none")})
    batches = TrainingBatches(store, pictures, tokenizer, params, 1, Loader(workers=spec["workers"], prefetch=2))
    steps = count(1)
    return lambda: np.array([[sum(len(batches.batch(step).images) for step in islice(steps, num_batches))]])


def _cn_clip(folder: Path, num_batches: int, spec: dict) -> Run:
    import torch.distributed as dist
    from cn_clip.training.data import get_data

    if not dist.is_initialized():
        dist.init_process_group("gloo", init_method=f"file://{folder / 'rank'}-{id(spec)}", rank=0, world_size=1)
    asked = {"train_data": str(folder / "cn_clip"), "val_data": None, "vision_model": "ViT-B-16", "seed": 1}
    more = {"use_augment": False, "batch_size": BATCH, "num_workers": spec["workers"]}
    loader = get_data(Namespace(**asked, **more), max_txt_length=CONTEXT_LENGTH)["train"].dataloader
    return _through(loader, num_batches)


def _webdataset(folder: Path, num_batches: int, spec: dict) -> Run:
    from webdataset import WebDataset  # ty: ignore[missing-module-member]

    tars = [str(path) for path in sorted((folder / "tars").glob("*.tar"))]
    pairs = WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode("pil")
    made = pairs.to_tuple("jpg", "txt").map(_as_cn_clip)
    return _through(DataLoader(made, batch_size=BATCH, num_workers=spec["workers"], drop_last=True), num_batches)


def _files(folder: Path, num_batches: int, spec: dict) -> Run:
    loader = DataLoader(
        _Files(sorted((folder / "files").glob("*.jpg"))),
        batch_size=BATCH,
        shuffle=True,
        num_workers=spec["workers"],
        pin_memory=False,
        drop_last=True,
    )
    return _through(loader, num_batches)


class _Files(Dataset):
    """Pictures with a text beside each, as most people's first data set reads them."""

    def __init__(self, pictures: list[Path]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple:
        picture = self.pictures[index]
        return _as_cn_clip((Image.open(picture), picture.with_suffix(".txt").read_text(encoding="utf-8")))


def _as_cn_clip(pair: tuple[Image.Image, str]) -> tuple:
    from cn_clip.clip import tokenize

    return _transform()(pair[0]), tokenize([pair[1]], context_length=CONTEXT_LENGTH)[0]


@cache
def _transform() -> Callable:
    from cn_clip.training.data import LMDBDataset

    return LMDBDataset._build_transform(Namespace(split="val", use_augment=False), SIDE)  # ty: ignore[invalid-argument-type]


def _through(loader: DataLoader, num_batches: int) -> Run:
    batches = chain.from_iterable(repeat(loader))
    return lambda: np.array([[sum(len(images) for images, *_ in islice(batches, num_batches))]])


def _at(size: tuple[int, int] | None, photo: bytes) -> bytes:
    if size is None:
        return photo
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo)).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _write_store(folder: Path, pictures: list[bytes], texts: list[str]) -> None:
    writer = StoreWriter(folder, 2**30)
    for number, picture in enumerate(pictures):
        writer.add(f"{number:06}", picture)
    rows = pd.DataFrame({**dict.fromkeys(COLUMNS), "image_id": writer.image_ids, "caption": texts})
    fixed = {"language": "zh", "caption_kind": "caption", "split": "train", "seen": True}
    sizes = {"width": 0, "height": 0, "num_bytes": 0, "near_duplicate_group": writer.image_ids}
    writer.finish(rows.assign(pair_id=writer.image_ids, image_sha256=writer.sums, **fixed, **sizes))


def _write_lmdb(folder: Path, pictures: list[bytes], texts: list[str]) -> None:
    """As cn_clip.preprocess.build_lmdb_dataset writes it, whose pairs are pickled; nothing of ours reads a pickle."""
    import lmdb

    records = {
        "imgs": {str(number): base64.urlsafe_b64encode(picture) for number, picture in enumerate(pictures)},
        "pairs": {str(number): pickle.dumps((number, number, text)) for number, text in enumerate(texts)},
    }
    counts = {"imgs": "num_images", "pairs": "num_samples"}
    for name, values in records.items():
        (folder / name).mkdir(parents=True)
        with lmdb.open(str(folder / name), map_size=2**36) as environment, environment.begin(write=True) as transaction:
            for key, value in (values | {counts[name]: str(len(values)).encode()}).items():
                transaction.put(key.encode(), value)


def _write_files(folder: Path, pictures: list[bytes], texts: list[str]) -> None:
    """Plain files, and the same in tars as img2dataset cuts them, several for each worker."""
    (folder / "files").mkdir()
    (folder / "tars").mkdir()
    num_tars = 8
    for tar_number in range(num_tars):
        with tarfile.open(folder / "tars" / f"{tar_number:05}.tar", "w") as tar:
            for number in range(tar_number, len(pictures), num_tars):
                for ending, content in (("jpg", pictures[number]), ("txt", texts[number].encode())):
                    file = folder / "files" / f"{number:06}.{ending}"
                    file.write_bytes(content)
                    tar.add(file, file.name)
