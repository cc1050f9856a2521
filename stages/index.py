"""DVC stage: the index of the gallery (the test pictures), if its recall against an exact search is high enough."""

from pathlib import Path

from clip_core.config.index import Index
from clip_core.config.section import Section
from stages.command import run


class Params(Section):
    index: Index


def main(params: Params, onnx: Path, packed: Path, out: Path) -> None:
    from clip_core.data.store import open_store
    from clip_core.serve.index import build_index

    index = params.index
    store = open_store(packed / "test")
    texts = sorted(set(store.pairs.query("language == 'zh'").caption))
    recall = build_index(onnx, store, texts, index, out)
    print(f"{len(store)} pictures; recall@{index.top_k} of {len(texts)} texts against exact search: {recall:.4f}")


if __name__ == "__main__":
    run(main)
