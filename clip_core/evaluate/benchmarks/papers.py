"""The paper's figures with an empty column for one's own: `python -m clip_core.evaluate.benchmarks.papers`."""

from clip_core.evaluate.benchmarks.described import RELEASED, every
from clip_core.evaluate.benchmarks.table import LABELS

HEADLINES = ("mean_recall", "text_to_image_mean_recall", "accuracy", "mean_per_class", "map_11_points", "roc_auc")


def table_of_paper() -> str:
    """A line for each benchmark with figures, zero-shot and finetuned, in the metric that stands for it."""
    lines = [f"| benchmark | | metric | {' | '.join(RELEASED)} | yours |", "|---" * (4 + len(RELEASED)) + "|"]
    for name, benchmark in sorted(every().items(), key=lambda item: (item[1].kind != "retrieval", item[0])):
        for kind, figures in benchmark.paper.model_dump().items() if benchmark.paper else ():
            if metric := next((metric for metric in HEADLINES if metric in figures), None):
                cells = " | ".join(f"{value:.1f}" for value in figures[metric])
                lines.append(f"| `{name}` | {kind.replace('_', '-')} | {LABELS[metric]} | {cells} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table_of_paper())
