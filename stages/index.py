"""DVC stage: the index of the gallery (the test pictures), if its recall against an exact search is high enough."""

from pathlib import Path

from stages.command import run


def main(onnx: Path, packed: Path, out: Path, params_file: Path = Path("params.yaml")) -> None:
    from clip_core.data.store import open_store
    from clip_core.params_file import load_params
    from clip_core.serve.index import build_index

    params = load_params(params_file).index
    store = open_store(packed / "test")
    texts = sorted(set(store.pairs.query("language == 'zh'").caption))
    recall = build_index(onnx, store, texts, params.top_k, params.min_recall, out)
    print(f"{len(store)} pictures; recall@{params.top_k} of {len(texts)} texts against exact search: {recall:.4f}")


if __name__ == "__main__":
    run(main)
