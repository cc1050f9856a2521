"""A model with narrower features: `python -m clip_core.model.matryoshka WEIGHTS_FOLDER WIDTH OUT`.

The first numbers of a feature, normalised again, are what projections without their last rows compute.
"""

import argparse
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from clip_core.errors import UserError, told_to_the_user
from clip_core.model.clip import CLIP
from clip_core.model.contract import TOKENIZER_FILE, read_contract
from clip_core.model.weights import load_weights, save_weights


def narrow(model: CLIP, width: int) -> None:
    """Makes `width` the model's embed_dim: its features are the first numbers of what they were, of length 1 again."""
    if isinstance(model.image_projection, nn.Identity):
        model.image_projection = nn.Linear(model.architecture.embed_dim, model.architecture.embed_dim, bias=False)
        nn.init.eye_(model.image_projection.weight)
    for projection in (model.image_projection, model.text_projection):
        assert isinstance(projection, nn.Linear)
        projection.weight = nn.Parameter(projection.weight.detach()[:width].clone())
        if projection.bias is not None:
            projection.bias = nn.Parameter(projection.bias.detach()[:width].clone())
        projection.out_features = width
    model.architecture = model.architecture.narrowed(width)


def narrow_weights(folder: Path, width: int, out: Path) -> None:
    """Writes the new weights folder `out`: the model in `folder` with features of a width that was trained."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: is there already; name a new folder, or remove it first")
    contract = read_contract(folder)
    trained = (contract.embed_dim, *contract.architecture.matryoshka)
    if width not in trained:
        raise UserError(
            f"width {width}: {folder} was trained for {', '.join(map(str, trained))}; "
            f"model.matryoshka names the narrower widths that train too"
        )
    model = load_weights(folder)
    narrow(model, width)
    save_weights(model, (folder / TOKENIZER_FILE).read_text(encoding="utf-8"), out, contract.made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("width", type=int)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with told_to_the_user(OSError, SafetensorError):
        narrow_weights(arguments.weights, arguments.width, arguments.out)
    print(f"{arguments.out}: features of {arguments.width} numbers")


if __name__ == "__main__":
    main()
