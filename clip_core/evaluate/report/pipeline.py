"""The report's account of the run: data counts, validation, export, Triton, licences, versions."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.metadata import version
from platform import python_version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

NONE = "&ndash;"
PACKAGES = ("torch", "timm", "transformers", "dvc", "great_expectations", "onnxruntime", "prefect")


def counts_table(counts: Mapping[str, Mapping]) -> str:
    """What came into each data stage and what became of it; every row adds up, or the page says so."""
    rows = []
    for stage, found in counts.items():
        adds_up = found["read"] == found["kept"] + found["rejected"]
        why = ", ".join(f"{escape(reason)} {number:,}" for reason, number in found["by_reason"].items()) or NONE
        rows.append(
            f"<tr><th>{stage}</th><td>{found['read']:,}</td><td>{found['kept']:,}</td><td>{found['rejected']:,}</td>"
            f"<td>{_mark(adds_up, 'adds up', 'does not add up')}</td><td class='text'>{why}</td></tr>"
        )
    head = ("stage", "pairs in", "kept", "rejected", "in = kept + rejected", "rejected because")
    return _table(head, "".join(rows))


def splits_table(pairs: Mapping[str, "pd.DataFrame"]) -> str:
    """What training, validation and test consist of."""
    rows = []
    for split, rows_of in pairs.items():
        seen = rows_of.drop_duplicates("image_id").seen
        concepts = rows_of.concept_id.nunique()
        sources = escape(", ".join(sorted(set(rows_of.source))))
        rows.append(
            f"<tr><th>{split}</th><td>{len(seen):,}</td><td>{len(rows_of):,}</td><td>{concepts or NONE}</td>"
            f"<td>{int((~seen).sum()):,}</td><td class='text'>{sources}</td></tr>"
        )
    return _table(("split", "pictures", "pairs", "concepts", "pictures of unseen concepts", "source"), "".join(rows))


def validation_table(validation: Mapping) -> str:
    """Every rule of the suite: what it asks, and what it found."""
    rows = ""
    for rule in validation["rules"]:
        found = f"{rule['bad_rows']:,} bad rows" if rule["about"] == "row" else f"observed {rule['observed']}"
        rows += (
            f"<tr><th>{escape(rule['name'])}</th><td>{_mark(rule['passed'], 'passed', 'failed')}</td><td>{found}</td>"
            f"<td class='text'>{escape(rule['description'])} "
            f"<span class='range'>{escape(rule['allowed'])}</span></td></tr>"
        )
    return _table(("rule", "", "found", "what must hold"), rows)


def parity_table(parity: Mapping) -> str:
    """How far the exported towers are from torch."""
    largest, top10 = parity["max_feature_difference"], parity["top10"]
    rows = "".join(
        f"<tr><th>{label}</th><td>{largest[name]:.1e}</td></tr>"
        for name, label in (
            ("text", "text tower, random inputs of many shapes"),
            ("image", "image tower, random inputs of many shapes"),
            ("test_texts", f"text tower, {parity['num_texts']:,} test texts"),
            ("test_images", f"image tower, {parity['num_images']:,} test pictures"),
        )
    )
    same = top10["num_queries"] - top10["different"]
    rows += (
        f"<tr><th>queries with the same top 10 (ties may change places)</th>"
        f"<td>{same:,} of {top10['num_queries']:,}</td></tr>"
    )
    return _table(("ONNX against torch", "largest difference"), rows)


def deploy_table(deploy: Mapping) -> str:
    """What the real server answered, and how fast."""
    rows = "".join(
        f"<tr><th>{escape(name.replace('_', ' ').replace('.', ', '))}</th><td>{_shown(value)}</td></tr>"
        for name, value in _leaves(deploy)
    )
    return _table(("over gRPC", ""), rows)


def licences_table(pairs: Mapping[str, "pd.DataFrame"]) -> str:
    """The licence of every source of pictures."""
    rows = ""
    for split, rows_of in pairs.items():
        counts = rows_of.drop_duplicates("image_id").groupby(["source", "licence"]).size()
        for (source, licence), number in counts.items():
            rows += f"<tr><th>{escape(source)}</th><td>{split}</td><td>{number:,}</td>"
            rows += f"<td class='text'>{escape(licence)}</td></tr>"
    return _table(("source", "split", "pictures", "licence"), rows)


def versions_line() -> str:
    """The versions that made the run."""
    return " &middot; ".join([f"python {python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)])


def _mark(good: bool, yes: str, no: str) -> str:
    return f'<span class="{"yes" if good else "no"}">{yes if good else no}</span>'


def _table(head: Sequence[str], rows: str) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>'


def _leaves(tree: Mapping, path: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield path + name, value


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
