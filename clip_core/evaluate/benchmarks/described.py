"""What a benchmark is: one small YAML file each, in `sets/` or of the user's own, read strictly."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from clip_core.config.section import Count, Inside, Name, Section, resembling
from clip_core.config.sources import EmojiSource, IconparkSource
from clip_core.errors import UserError
from clip_core.params_file import read_yaml, validated

SETS = Path(__file__).parent / "sets"
RELEASED = ("rn50", "vit-b-16", "vit-l-14", "vit-l-14-336", "vit-h-14")  # the paper's columns, by our models' names
Way = Literal["text_to_image", "image_to_text"]
Metric = Literal["accuracy", "mean_per_class", "map_11_points", "roc_auc"]  # of the paper's table 11
Percents = Annotated[tuple[float, ...], Field(min_length=len(RELEASED), max_length=len(RELEASED))]


class Paper(Section):
    """The figures that arXiv 2211.01335 gives for RELEASED, in percent: metric -> one a model."""

    zero_shot: dict[Name, Percents]
    finetuned: dict[Name, Percents]


class Retrieval(Section):
    """Texts and pictures that are searched for each other."""

    kind: Literal["retrieval"]
    title: Name
    groups: tuple[Name, ...]  # names that stand for several benchmarks
    folder: Inside  # in the user's folder of data, unless that is the benchmark's own
    source: Literal["muge", "folder", "webdataset", "table", "saved"]
    files: Inside | None  # of muge: the name before `_imgs.tsv`; of others null: all pictures, or those named test
    num_pictures: Count | None  # null: not checked, as of any folder of the user's
    num_texts: Count | None
    ways: Annotated[tuple[Way, ...], Field(min_length=1)]
    contaminated: Name | None  # why figures of the released weights, and of what trained from them, are too good
    paper: Paper | None


class Classification(Section):
    """Pictures of classes that have Chinese names."""

    kind: Literal["classification"]
    title: Name
    groups: tuple[Name, ...]
    folder: Inside | None  # null: a built-in source, which knows its own
    source: Annotated[EmojiSource | IconparkSource, Field(discriminator="source")] | None  # null: class folders
    pictures: Inside | None  # the folder of the class folders in `folder`; null: that itself
    num_pictures: Count | None
    num_classes: Count | None
    templates: Name  # the domain in clip_core/inference/prompts.toml
    reference_templates: Name  # the list that the reference takes
    metric: Metric
    contaminated: Name | None
    paper: Paper | None


Benchmark = Retrieval | Classification


class _File(Section):
    """So that a message names the file's own keys."""

    benchmark: Annotated[Benchmark, Field(discriminator="kind")]


def described(name: str) -> dict[str, Benchmark]:
    """The benchmarks that `name` means, by name: one of `sets/`, a group of them, or a YAML file of the user's."""
    if name.endswith((".yaml", ".yml")):
        return {Path(name).stem: _read(Path(name))}
    known = every()
    if found := {one: benchmark for one, benchmark in known.items() if name == one or name in benchmark.groups}:
        return found
    groups = {group for benchmark in known.values() for group in benchmark.groups}
    names = [*sorted(groups), *known]
    raise UserError(
        f"no benchmark is named {name!r}{resembling(name, names) or '.'} There are {', '.join(names)}. Or name a "
        "YAML file of your own (docs/evaluation.md)."
    )


def every() -> dict[str, Benchmark]:
    """All benchmarks of `sets/`, by name."""
    return {file.stem: _read(file) for file in sorted(SETS.glob("*.yaml"))}


def _read(file: Path) -> Benchmark:
    return validated(_File, {"benchmark": read_yaml(file)}, file).benchmark
