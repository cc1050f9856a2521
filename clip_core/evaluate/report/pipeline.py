"""The report's account of the run: data counts, validation, export, Triton, licences, versions."""

from collections.abc import Mapping, Sequence
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
    head = ("stage", "rows in", "kept", "rejected", "in = kept + rejected", "rejected because")
    return _table(head, "".join(rows), prose=True)


def mixture_table(sources: Mapping[str, Mapping]) -> str:
    """What each source of a mixture brought, and what its weight and its cap left out."""
    columns = ("pairs", "pictures", "left_out_by_weight", "left_out_by_max_pairs")
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{found[column]:,}</td>' for column in columns)}</tr>"
        for name, found in sources.items()
    )
    return _table(("source", "pairs", "pictures", "left out by weight", "left out by cap"), rows)


def splits_table(pairs: Mapping[str, "pd.DataFrame"]) -> str:
    """What training, validation and test consist of."""
    rows = []
    for split, rows_of in pairs.items():
        whole = rows_of.dropna(subset=["image_id", "text_id"])
        seen = _pictures(rows_of).seen
        concepts = rows_of.concept_id.nunique()
        sources = escape(", ".join(sorted(set(rows_of.source))))
        rows.append(
            f"<tr><th>{split}</th><td>{len(seen):,}</td><td>{len(whole):,}</td><td>{concepts:,}</td>"
            f"<td>{int((~seen).sum()):,}</td><td class='text'>{sources}</td></tr>"
        )
    return _table(
        ("split", "pictures", "pairs", "concepts", "pictures of unseen concepts", "source"), "".join(rows), prose=True
    )


def validation_table(validation: Mapping) -> str:
    """Every rule of the suite: what it asks, and what it found."""
    passed = sum(rule["passed"] for rule in validation["rules"])
    rows = ""
    for rule in validation["rules"]:
        found = f"{rule['bad_rows']:,} bad rows" if rule["about"] == "row" else f"observed {rule['observed']}"
        rows += (
            f"<tr><th>{escape(rule['name'])}</th><td>{_mark(rule['passed'], 'passed', 'failed')}</td><td>{found}</td>"
            f"<td class='text'>{escape(rule['description'])} "
            f"<span class='range'>{escape(rule['allowed'])}</span></td></tr>"
        )
    table = _table(("rule", "", "found", "what must hold"), rows, prose=True)
    return (
        f"<details><summary>{_mark(passed == len(validation['rules']), '', '')}{passed} of {len(validation['rules'])} "
        f"rules passed; {validation['rejected']:,} of {validation['read']:,} rows refused</summary>{table}</details>"
    )


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
    """What a real server answered to the test queries, and how fast."""
    rows = "".join(
        f"<tr><th>{name.removeprefix('text_to_image_')}</th><td>{100 * found['served']:.1f}</td>"
        f"<td>{100 * found['offline']:.1f}</td></tr>"
        for name, found in deploy["recall"].items()
    )
    recall = _table(("text &rarr; picture, all test queries", "through gRPC, %", "offline, %"), rows)
    rows = "".join(
        f"<tr><th><code>{model}</code></th><td>{found['p50']:.1f}</td><td>{found['p99']:.1f}</td></tr>"
        for model, found in deploy["latency_ms"].items()
    )
    latency = _table(("one request at a time, ms", "p50", "p99"), rows)
    golden = max(deploy["golden_max_difference"].values())
    return f"{recall}{latency}<p class='note'>Golden queries: at most {golden:.1e} from torch's features.</p>"


def licences_table(pairs: Mapping[str, "pd.DataFrame"]) -> str:
    """The licence of every source of pictures."""
    rows = ""
    for split, rows_of in pairs.items():
        for source, mine in _pictures(rows_of).groupby("source"):
            licences = escape(", ".join(sorted(set(mine.licence))))
            rows += f"<tr><th>{escape(str(source))}</th><td>{split}</td><td>{len(mine):,}</td>"
            rows += f"<td class='text'>{licences}</td></tr>"
    return _table(("source", "split", "pictures", "licence"), rows, prose=True)


def versions_line(deploy: Mapping) -> str:
    """The versions that made the run."""
    served = f"tritonserver {deploy['versions']['tritonserver']}"
    ours = [f"python {python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]
    return " &middot; ".join([*ours, escape(served)])


def _pictures(rows: "pd.DataFrame") -> "pd.DataFrame":
    """A row a picture; a text without one has none."""
    return rows.dropna(subset="image_id").drop_duplicates("image_id")


def _mark(good: bool, yes: str, no: str) -> str:
    return f'<span class="{"yes" if good else "no"}">{yes if good else no}</span>'


def _table(head: Sequence[str], rows: str, prose: bool = False) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    kind = "prose" if prose else "figures"
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
