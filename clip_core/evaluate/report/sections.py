"""The report's sections: what a reader wants to know, in the order in which one asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from clip_core.evaluate.headline import has_concepts
from clip_core.evaluate.report.ablation import ablation_cards
from clip_core.evaluate.report.pipeline import (
    counts_table,
    deploy_table,
    licences_table,
    mixture_table,
    parity_table,
    splits_table,
    validation_table,
)
from clip_core.evaluate.report.queries import ReadImage, query_grid
from clip_core.evaluate.report.results import retrieval_tables, training_curves, zero_shot_table

if TYPE_CHECKING:
    import pandas as pd

LEGEND = (
    '<p class="legend"><span class="key stage1">stage 1</span><span class="key stage2">stage 2, the final model</span>'
    '<span class="key chance">chance</span><span>band: {confidence:g} % bootstrap interval over queries; '
    "those that share a right answer are drawn together</span></p>"
)


@dataclass(frozen=True)
class Run:
    """What the pipeline left behind, as read from its files."""

    metrics: Mapping  # of the test benchmark
    confidence: float
    queries: Sequence[Mapping]  # its details
    read_image: ReadImage
    curves: Mapping[str, Mapping[str, list[tuple[float, float]]]]  # stage -> loss, recall -> (step, value)
    counts: Mapping[str, Mapping]  # data stage -> counts
    pairs: Mapping[str, "pd.DataFrame"]  # split -> its packed pairs
    validation: Mapping
    model: Mapping  # model.json
    parity: Mapping
    deploy: Mapping
    ablation: Mapping | None


def lead(run: Run) -> str:
    """The run in two sentences."""
    first = run.metrics["seen"]["text_to_image_recall@1"]
    times = first["value"] / first["chance"]
    sources = {split: set(rows.source) for split, rows in run.pairs.items()}
    held_out = "" if sources["train"] & sources["test"] else ", all drawn in a style that training never saw"
    kind = "name" if "name" in set(run.pairs["test"].caption_kind) else "caption"
    return (
        f'<p class="lead">A Chinese {kind} is the query, {run.metrics["seen"]["num_candidates"]:,} pictures are the '
        f"candidates{held_out}. The first picture is right in {100 * first['value']:.1f} of 100 queries, "
        f"{times:.0f} times as often as by chance.</p>"
    )


def model(run: Run) -> str:
    """What was trained, and from what."""
    architecture, made = run.model["architecture"], run.model["made"]
    text = architecture["text_tower"]
    steps = {stage: f"{lines['loss'][-1][0]:.0f} steps" for stage, lines in run.curves.items() if lines["loss"]}
    image_tower = f"<code>{escape(architecture['image_tower']['name'])}</code> of timm"
    warm_up = f" is warmed up as a CLIP on the training pictures, {_warm_up_captions(run)}" if "init" in steps else ""
    first = "The image tower is frozen; the text tower learns Chinese from its features."
    return (
        "<h2>The model</h2>"
        "<p>A CLIP with two towers, trained in the two stages of the Chinese-CLIP paper. Texts and pictures become "
        f"unit vectors of {architecture['embed_dim']} numbers; the nearest picture is the answer.</p>"
        '<div class="steps">'
        f'<div class="step init"><h3>Start <small>{steps.get("init", "")}</small></h3><p>The image tower '
        f"({image_tower}, {architecture['image_size']} px){warm_up}. "
        f"Text tower (<code>{escape(text['name'])}</code> of transformers): <b>{escape(made['text_tower'])}</b>.</p>"
        "</div>"
        f'<div class="step stage1"><h3>Stage 1 <small>{steps.get("stage1", "")}</small></h3>'
        f"<p>{first if 'stage1' in steps else 'Nothing trains: its figures are those of the start.'}</p></div>"
        f'<div class="step stage2"><h3>Stage 2 <small>{steps.get("stage2", "")}</small></h3>'
        f"<p>{'Both towers train.' if 'stage2' in steps else 'Nothing trains: these are the weights as they were.'}</p>"
        "</div>"
        "</div>"
    )


def _warm_up_captions(run: Run) -> str:
    if set(run.pairs["train"].language) == {"zh"}:
        return "with <b>Chinese</b> captions, as these data have no English ones"
    return "with <b>English</b> captions unless <code>init.warm_start.captions</code> says otherwise"


def recall(run: Run) -> str:
    """All metrics of the test benchmark."""
    return (
        "<h2>Recall on the test pictures</h2><p>R@k: the share of queries with a right answer among the first k. "
        "Any right answer counts; a tie never counts in favour of the truth.</p>"
        + _quality(run.counts["validate"])
        + LEGEND.format(confidence=100 * run.confidence)
        + f'<div class="cards">{retrieval_tables(run.metrics)}{zero_shot_table(run.metrics)}</div>'
    )


def _quality(counts: Mapping) -> str:
    """What is in the test although training would not have it, and what had to leave."""
    broken = ", ".join(
        f"{rule} {num:,}" for rule, num in counts.get("break_a_rule_and_stay", {}).get("test", {}).items()
    )
    lost = counts.get("texts_that_left_with_their_pictures", 0)
    said = f" Nothing leaves the test for its quality; these break a rule: {broken}." if broken else ""
    said += f" {lost:,} texts of validation and test left with pictures that can not be decoded." if lost else ""
    return f"<p>{escape(said.strip())}</p>" if said else ""


def queries(run: Run) -> str:
    """Real queries with what was found."""
    return (
        "<h2>What it finds</h2><p>Each row is a Chinese query and its ten best pictures among all test pictures, best "
        "first. Nobody picked the rows.</p>" + query_grid(run.queries, run.read_image, has_concepts(run.metrics))
    )


def training(run: Run) -> str:
    """The curves."""
    charts = training_curves(run.curves)
    told = "The loss of a batch, and recall on the validation pictures along the way." if charts else "There was none."
    return f'<h2>Training</h2><p>{told}</p><div class="charts">{charts}</div>'


def data(run: Run) -> str:
    """What came in, what was refused, and what was packed."""
    sources = run.counts["ingest"].get("sources")
    mixture = f'<div class="card"><h3>Sources of the mixture</h3>{mixture_table(sources)}</div>' if sources else ""
    return (
        "<h2>Data</h2><p>What is refused lies in quarantine with its reason, file and line.</p>"
        f'<div class="cards"><div class="card"><h3>Pairs through the stages</h3>{counts_table(run.counts)}</div>'
        f'{mixture}<div class="card"><h3>What was packed</h3>{splits_table(run.pairs)}</div>'
        f'<div class="card"><h3>Validation, rule by rule</h3>{validation_table(run.validation)}</div></div>'
    )


def serving(run: Run) -> str:
    """Whether what is served is what was trained."""
    return (
        "<h2>Serving</h2><p>The exported towers agree with torch, and a real Triton server answered the test queries "
        f'over gRPC.</p><div class="pair"><div class="card"><h3>Export</h3>{parity_table(run.parity)}</div>'
        f'<div class="card"><h3>Triton</h3>{deploy_table(run.deploy)}</div></div>'
    )


def ablation(run: Run) -> str:
    """The committed ablation, where there is one."""
    if run.ablation is None:
        return ""
    return (
        "<h2>Are two stages worth it?</h2><p>As <code>make ablation</code> found when it last ran, which need not have "
        "been on this data or with this model; in a fresh clone it was the built-in pipeline.</p>"
        f'<p>{escape(run.ablation["claim"])}</p><div class="cards">{ablation_cards(run.ablation)}</div>'
    )


def licences(run: Run) -> str:
    """Whose pictures these are."""
    built_in = any(
        source.startswith(("emoji/", "iconpark/")) for rows in run.pairs.values() for source in set(rows.source)
    )
    named = '; <a href="../NOTICE">NOTICE</a> names makers and licences' if built_in else ""
    return (
        f"<h2>Licences</h2><p>The pictures on this page are their makers' work{named}.</p>"
        f'<div class="card">{licences_table(run.pairs)}</div>'
    )
