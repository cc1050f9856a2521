"""WiSE-FT: the weights between two weights folders, measured on a packed split, and the best of them.

`python -m clip_core.evaluate.interpolate BEFORE AFTER OUT --packed data/packed/valid` mixes the two linearly, tensor
by tensor: alpha 0 is BEFORE, alpha 1 is AFTER, to the bit. The logarithm of the logit scale is mixed as a weight is,
and so are batch normalisation's running statistics, which is an approximation. OUT gets the weights of the chosen
alpha, curve.json and curve.html. What each side alone has forgotten is measured with the other side of BEFORE.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from clip_core.config.section import hash_of
from clip_core.data.store import Store, open_store
from clip_core.env import set_switches
from clip_core.errors import UserError, told_to_the_user
from clip_core.evaluate.answers import answers_of
from clip_core.evaluate.benchmark import Benchmark, read_benchmark
from clip_core.evaluate.embed import Features
from clip_core.evaluate.interpolation_page import COLOURS, interpolation_page
from clip_core.files import atomic_write, replacing_folder
from clip_core.inference.predictor import Predictor, encode_pictures
from clip_core.inference.torch_towers import TorchTowers
from clip_core.model.clip import CLIP
from clip_core.model.contract import TOKENIZER_FILE, WEIGHTS_FILE, Contract, read_contract, weights_id
from clip_core.model.precision import pick_device
from clip_core.model.weights import load_weights, save_weights
from clip_core.text import load_tokenizer

METRIC = "all.mean_recall"  # by which the best alpha is chosen
ALPHAS = tuple(i / 10 for i in range(11))
Sides = tuple[np.ndarray, np.ndarray]  # features of the pictures, and of the texts
WAYS = ("text_to_image_mean_recall", "image_to_text_mean_recall")


class Between:
    """Two weights folders of one kind, and all that lies between them."""

    def __init__(self, before: Path, after: Path) -> None:
        self.contract = check_same_kind(before, after)
        self.tokenizer = load_tokenizer(before / TOKENIZER_FILE, self.contract.context_length)
        self.weights_ids = {"before": weights_id(before), "after": weights_id(after)}
        self.model = load_weights(before).to(pick_device("auto"))
        self._ends = load_file(before / WEIGHTS_FILE), load_file(after / WEIGHTS_FILE)  # mapped, not copied

    @torch.no_grad()
    def move_to(self, alpha: float) -> CLIP:
        """The model at `alpha`; it is one and the same model that moves."""
        before, after = self._ends
        for name, tensor in self.model.state_dict().items():
            tensor.copy_(mixed(before[name], after[name], alpha))
        return self.model

    def share(self, side: str) -> bool:
        """Whether both have the same image side, or text side, as when one tower was frozen."""
        before, after = self._ends
        return all(torch.equal(before[name], after[name]) for name in before if name.startswith(side))


def mixed(before: Tensor, after: Tensor, alpha: float) -> Tensor:
    """The tensor at `alpha`; the ends are themselves to the bit. Counters are AFTER's, but at 0."""
    if alpha == 0:
        return before
    if alpha == 1 or not before.is_floating_point():
        return after
    return torch.lerp(before, after, alpha)


def interpolate(
    before: Path, after: Path, out: Path, packed: Path, alphas: Sequence[float] = ALPHAS, choose: float | None = None
) -> dict:
    """Measures each alpha on the split `packed`, writes the curve and the chosen weights to `out`, returns the curve.

    Without `choose` the alpha with the highest mean recall of all concepts is taken, of equal ones the smallest.
    """
    if out.exists():
        raise UserError(f"{out} exists already: remove it, or name another folder")
    wanted = checked(alphas, choose)
    between, store = Between(before, after), open_store(packed)
    points, sides = measure_points(between, store, wanted)
    chosen = max(points, key=lambda point: point[METRIC])["alpha"] if choose is None else choose
    curve = {
        "chosen": chosen,
        "chosen_by": METRIC if choose is None else "hand",
        "weights": between.weights_ids,
        "points": points,
        "sides": sides,
    }
    made = between.contract.made.model_copy(
        update={
            "stage": f"interpolate: {chosen:g} of the way to {between.weights_ids['after']}",
            "params": hash_of(chosen, between.weights_ids),
            "data": hash_of(store.manifest),
            "parent": between.weights_ids["before"],
        }
    )
    with replacing_folder(out) as aside:
        tokenizer_json = (before / TOKENIZER_FILE).read_text(encoding="utf-8")
        save_weights(between.move_to(chosen).cpu(), tokenizer_json, aside / "weights", made)
        atomic_write(aside / "curve.json", json.dumps(curve, indent=1) + "\n")
        atomic_write(aside / "curve.html", interpolation_page(curve))
    return curve


def measure_points(between: Between, store: Store, alphas: Sequence[float]) -> tuple[list[dict[str, float]], dict]:
    """Each alpha with its mean recalls, by `group.metric`, and `sides_of` the ends; prints each alpha as it is done."""
    benchmark = read_benchmark(store)
    points, images, texts, ends = [], None, None, {}
    for number, alpha in enumerate(alphas, 1):
        towers = TorchTowers(between.move_to(alpha))
        predictor = Predictor(towers, between.tokenizer, between.contract, weights_id=f"alpha {alpha:g}")
        if images is None or not between.share("image_"):
            images = encode_pictures(predictor, store)
        if texts is None or not between.share("text_"):
            texts = predictor.encode_texts(benchmark.texts)
        if alpha in (0, 1):
            ends[alpha] = images, texts
        points.append({"alpha": alpha, **_recalls(images, texts, benchmark)})
        print(f"alpha {alpha:g} measured ({number} of {len(alphas)})", flush=True)
    return points, sides_of(ends[0], ends[1], benchmark) if len(ends) == 2 else {}


def sides_of(before: Sides, after: Sides, benchmark: Benchmark) -> dict[str, dict[str, float]]:
    """What each side alone has forgotten and learnt, from both ends' features of pictures and of texts.

    `cosine`: of AFTER's features with BEFORE's, on average; and the recalls of that side of AFTER with BEFORE's other.
    """
    cosines = [float((one * other).sum(axis=1).mean()) for one, other in zip(before, after, strict=True)]
    return {
        "image": {"cosine": cosines[0], **_recalls(after[0], before[1], benchmark)},
        "text": {"cosine": cosines[1], **_recalls(before[0], after[1], benchmark)},
    }


def _recalls(images: np.ndarray, texts: np.ndarray, benchmark: Benchmark) -> dict[str, float]:
    features, found = Features(texts=texts, images=images, class_names=[], classes=np.empty((0, 0))), {}
    for group, named in answers_of(features, benchmark, tuple(COLOURS)).items():
        ways = {name: float(named[name].values.mean()) for name in WAYS}
        found[f"{group}.mean_recall"] = sum(ways.values()) / len(ways)
        found |= {f"{group}.{name}": value for name, value in ways.items()}
    return found


def table(curve: dict) -> str:
    """Each alpha's mean recall by group, in percent, and that of the ends with one side exchanged."""
    points = curve["points"]
    groups = [name.partition(".")[0] for name in points[0] if name.endswith(".mean_recall")]
    lines = ["alpha  mean recall, %:" + "".join(f"{group:>8}" for group in groups)]
    for point in points:
        chosen = "  <- chosen" if point["alpha"] == curve["chosen"] else ""
        lines.append(f"{point['alpha']:<22g}{_percent(point, groups)}{chosen}")
    for side, found in curve["sides"].items():
        cosine = f"  its features' cosine to alpha 0: {found['cosine']:.3f}"
        lines.append(f"{f'0, {side} side of 1':<22}{_percent(found, groups)}{cosine}")
    return "\n".join(lines)


def _percent(found: dict[str, float], groups: Sequence[str]) -> str:
    return "".join(f"{100 * found[f'{group}.mean_recall']:8.1f}" for group in groups)


def checked(alphas: Sequence[float], choose: float | None) -> list[float]:
    """The alphas in their order, each once; raises UserError where one is no share."""
    wanted = sorted(set(alphas) | (set() if choose is None else {choose}))
    if wrong := [f"{alpha:g}" for alpha in wanted if not 0 <= alpha <= 1]:
        raise UserError(f"alphas must lie between 0 and 1, not {', '.join(wrong)}")
    return wanted


def check_same_kind(before: Path, after: Path) -> Contract:
    """The contract of both folders; raises UserError that names all in which they differ."""
    contract, other = read_contract(before), read_contract(after)
    mine, theirs = (made.architecture.model_dump(mode="json") for made in (contract, other))
    lines = [f"  {key}: {mine[key]} and {theirs[key]}" for key in mine if mine[key] != theirs[key]]
    for folder in (before, after):
        load_tokenizer(folder / TOKENIZER_FILE, contract.context_length)  # is there, and is one
    if (before / TOKENIZER_FILE).read_bytes() != (after / TOKENIZER_FILE).read_bytes():
        lines.append(f"  {TOKENIZER_FILE}: the same text becomes other tokens")
    if lines:
        raise UserError(
            f"nothing lies between {before} and {after}: they must be one model before and after finetuning. "
            "They differ in\n" + "\n".join(lines)
        )
    return contract


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m clip_core.evaluate.interpolate", description="the weights between two weights folders"
    )
    parser.add_argument("before", type=Path, help="weights before finetuning")
    parser.add_argument("after", type=Path, help="and after")
    parser.add_argument("out", type=Path, help="the new folder: weights, curve.json, curve.html")
    parser.add_argument("--packed", type=Path, required=True, help="the split to measure on, as data/packed/valid")
    parser.add_argument("--alphas", type=float, nargs="+", default=ALPHAS)
    parser.add_argument("--choose", default="best", help="best (by the mean recall of all concepts), or an alpha")
    arguments = parser.parse_args()
    set_switches()
    with told_to_the_user(OSError):
        try:
            choose = None if arguments.choose == "best" else float(arguments.choose)
        except ValueError:
            raise UserError(f"--choose is {arguments.choose!r}, and must be best or an alpha from 0 to 1") from None
        curve = interpolate(
            arguments.before, arguments.after, arguments.out, arguments.packed, arguments.alphas, choose
        )
    print("\n" + table(curve))
    print(f"\nchosen by {curve['chosen_by']}: alpha {curve['chosen']:g}, in {arguments.out}/weights")


if __name__ == "__main__":
    main()
