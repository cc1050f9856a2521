"""WiSE-FT: between two models lie models; the curve over them is measured, drawn, and its best one saved."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_core.evaluate.benchmark import read_benchmark
from clip_core.evaluate.interpolate import Between, checked, interpolate, main, mixed, sides_of
from clip_core.model.contract import read_contract, weights_id
from clip_core.model.weights import load_weights, save_weights
from clip_core.text import build_tokenizer
from tests.tiny import MADE, tiny_clip
from tests.tiny_split import make_split

ROWS = [(f"picture-{i}", name, i < 4, None) for i, name in enumerate("猫狗鸟鱼马牛")]
TOKENIZER = build_tokenizer([name for _, name, _, _ in ROWS])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("interpolate")
    make_split(place / "valid", ROWS)
    for name, seed in (("before", 1), ("after", 2)):
        model = tiny_clip(TOKENIZER, seed)
        with torch.no_grad():
            for buffer in model.buffers():  # statistics and counters that training would have made
                buffer.add_(seed)
        save_weights(model, TOKENIZER, place / name, MADE)
    return place


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder).state_dict()


@pytest.mark.parametrize(("alpha", "end"), [(0.0, "before"), (1.0, "after")])
def test_the_ends_are_the_two_models_to_the_bit(place: Path, tmp_path: Path, alpha: float, end: str) -> None:
    interpolate(place / "before", place / "after", tmp_path / "out", place / "valid", [alpha], choose=alpha)
    found, wanted = (folder / "model.safetensors" for folder in (tmp_path / "out" / "weights", place / end))
    assert found.read_bytes() == wanted.read_bytes()
    assert weights_id(tmp_path / "out" / "weights") == weights_id(place / end)


def test_in_between_every_number_is_the_share_of_both(place: Path, tmp_path: Path) -> None:
    interpolate(place / "before", place / "after", tmp_path / "out", place / "valid", [0.25], choose=0.25)
    before, after, found = (weights(place / "before"), weights(place / "after"), weights(tmp_path / "out" / "weights"))
    assert "logit_scale" in found
    for name, tensor in found.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, 0.75 * before[name] + 0.25 * after[name], atol=1e-6), name
        else:
            assert torch.equal(tensor, after[name]), name
    assert any(not tensor.is_floating_point() for tensor in found.values())
    assert any("running_var" in name for name in found)


def test_what_both_have_in_common_stays_to_the_bit() -> None:
    common = torch.randn(1000)
    assert all(torch.equal(mixed(common, common.clone(), alpha), common) for alpha in (0.1, 0.3, 0.5, 0.7, 0.9))


def test_the_curve_is_measured_as_an_evaluation_measures_and_the_best_is_kept(place: Path, tmp_path: Path) -> None:
    from clip_core.config.evaluation import Evaluate
    from clip_core.data.store import open_store
    from clip_core.evaluate.embed import embed
    from clip_core.evaluate.measure import measure
    from clip_core.inference.predictor import load

    curve = interpolate(place / "before", place / "after", tmp_path / "out", place / "valid", [0.0, 0.5, 1.0])

    assert json.loads((tmp_path / "out" / "curve.json").read_text()) == curve
    store, asked = open_store(place / "valid"), read_benchmark(open_store(place / "valid"))
    params = Evaluate(num_bootstrap=100, confidence=0.9, prompt_templates=("{}",))
    for point, folder in zip(curve["points"][::2], (place / "before", place / "after"), strict=True):
        metrics = measure(embed(load(folder), store, asked, ("{}",)), asked, params, seed=1)
        for name in set(point) - {"alpha"}:
            group, metric = name.split(".")
            assert point[name] == pytest.approx(metrics[group][metric]["value"]), name
    best = max(point["all.mean_recall"] for point in curve["points"])
    assert curve["chosen"] == next(p["alpha"] for p in curve["points"] if p["all.mean_recall"] == best)
    made = read_contract(tmp_path / "out" / "weights").made
    assert made.parent == weights_id(place / "before")
    assert made.stage == f"interpolate: {curve['chosen']:g} of the way to {weights_id(place / 'after')}"


def test_what_one_side_has_forgotten_is_measured_with_the_other_side_as_it_was(tmp_path: Path) -> None:
    benchmark = read_benchmark(make_split(tmp_path / "two", [("a", "猫", True, None), ("b", "狗", True, None)]))
    images = np.eye(2)
    texts = images[benchmark.pairs[np.argsort(benchmark.pairs[:, 0]), 1]]  # each text as its picture
    confused = images[::-1]
    sides = sides_of((images, texts), (confused, texts), benchmark)
    assert sides["image"]["cosine"] == 0 and sides["image"]["all.mean_recall"] == pytest.approx(2 / 3)  # at 1, 5, 10
    assert sides["text"]["cosine"] == 1 and sides["text"]["all.mean_recall"] == 1
    assert sides_of((images, texts), (images, texts[::-1]), benchmark)["text"]["all.mean_recall"] == pytest.approx(
        2 / 3
    )


def test_a_side_that_both_share_is_encoded_once(place: Path, tmp_path: Path) -> None:
    frozen, start = load_weights(place / "after"), weights(place / "before")
    with torch.no_grad():
        for name, tensor in frozen.state_dict().items():
            if name.startswith("image_"):
                tensor.copy_(start[name])
    save_weights(frozen, TOKENIZER, tmp_path / "frozen", MADE)
    between = Between(place / "before", tmp_path / "frozen")
    assert between.share("image_")
    assert not between.share("text_")


def test_models_of_two_kinds_are_refused_by_name(place: Path, tmp_path: Path) -> None:
    other = build_tokenizer(["一只猫"])
    save_weights(tiny_clip(other), other, tmp_path / "other", MADE)
    with pytest.raises(ValueError, match=r"(?s)nothing lies between .*before and .*other.*text_tower.*tokenizer\.json"):
        interpolate(place / "before", tmp_path / "other", tmp_path / "out", place / "valid")
    with pytest.raises(ValueError, match=r"between 0 and 1, not -0\.5, 2"):
        checked([0.0, 2.0], choose=-0.5)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists already"):
        interpolate(place / "before", place / "after", tmp_path / "out", place / "valid")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_one_command_gives_table_picture_and_weights(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(place / "before"), str(place / "after"), str(tmp_path / "out")]
    command = ["interpolate", *folders, "--packed", str(place / "valid")]
    monkeypatch.setattr("sys.argv", [*command, "--alphas", "0", "0.5", "1"])
    main()
    printed = capsys.readouterr().out
    assert re.search(r"^alpha +mean recall, %: +seen +unseen +all$", printed, re.M)
    assert len(re.findall(r"^(?:0|0\.5|1)(?: +[\d.]+){3}(?:  <- chosen)?$", printed, re.M)) == 3
    assert printed.count("<- chosen") == 1
    assert (
        len(
            re.findall(
                r"^0, (?:image|text) side of 1 (?: +[\d.]+){3}  its features' cosine to alpha 0: -?0", printed, re.M
            )
        )
        == 2
    )
    page = (tmp_path / "out" / "curve.html").read_text()
    assert page.count("<svg") == 3
    assert not re.search(r"https?://|src=", page)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["curve.html", "curve.json", "weights"]

    monkeypatch.setattr("sys.argv", [*command, "--choose", "good"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "error: --choose is 'good', and must be best or an alpha from 0 to 1" in capsys.readouterr().err
