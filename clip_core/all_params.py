"""The whole of `params.yaml`, which only the stage `check`, recipes and the flow read."""

from pathlib import Path

from clip_core.config.params import Params
from clip_core.config.text_start import FromBert
from clip_core.params_file import existing, read_yaml, validated


def load_params(path: Path) -> Params:
    """The checked parameters in the YAML file `path`.

    Raises UserError that names every wrong key at once, with its value and what is allowed.
    """
    return check_params(read_yaml(path), path)


def check_params(tree: dict, path: Path) -> Params:
    """`tree` (as read from `path`) as checked parameters; raises UserError that lists all that is wrong."""
    return validated(Params, tree, path)


def check_files(params: Params) -> None:
    """Raises UserError when a file or folder that the params name is not there, but the built-in data."""
    if params.data.source != "emoji":  # set-up fills that folder
        existing(Path(params.data.path), "data.path")
    rules, folder = params.curate.rules, Path(params.curate.path)
    if rules.blacklist is not None:
        existing(folder / rules.blacklist, "curate.rules.blacklist")
    if rules.score is not None:
        existing(folder / rules.score.weights, "curate.rules.score.weights")
    for key in ("image_tower", "bert_folder", "weights", "vocabulary"):
        name = getattr(params.init, key, None)
        if name is not None:
            existing(Path(params.init.path) / name, f"init.{key}")
    if isinstance(params.text_start, FromBert):
        existing(Path(params.text_start.path) / params.text_start.bert_folder, "text_start.bert_folder")
    if params.stage2.distill is not None:
        existing(Path(params.stage2.path) / params.stage2.distill.weights, "stage2.distill.weights")
