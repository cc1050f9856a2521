"""DVC stage: training pairs leave by rules, each counted and each to be switched off; valid and test lose nothing."""

from pathlib import Path

from clip_core.config.curation import Curate
from clip_core.config.section import Section
from stages.command import run


class Params(Section):
    curate: Curate


def main(params: Params, valid: Path, raw: Path, out: Path, quarantine: Path, page: Path) -> None:
    """Writes the pairs that stay to `out`, with the columns of curation, the others to `quarantine`, and the `page`."""
    from clip_core.data.curate import curate
    from clip_core.data.curation_page import write_page
    from clip_core.files import replacing_folder

    scores = None
    if score := params.curate.rules.score:
        import clip_core
        from clip_core.data.scores import scores_by

        scores = scores_by(clip_core.load(Path(params.curate.path, score.weights)), raw)
    with replacing_folder(out) as kept, replacing_folder(quarantine) as rejected, replacing_folder(page) as shown:
        curated = curate(params.curate, valid, kept, rejected, scores)
        write_page(curated, raw, shown)
    told = ", ".join(f"{number:,} {name}" for name, number in curated.rules.items() if number is not None)
    print(f"curate: {curated.kept:,} of {curated.read:,} pairs stay; {told} (see {page}/index.html)")


if __name__ == "__main__":
    run(main)
