"""Training pairs to batches at 224 px with 1 and 2 workers: against cn_clip's loader, WebDataset, plain files."""

import torch

from benchmarks.command import read_options
from benchmarks.compare import compare
from benchmarks.loading import prepare
from benchmarks.report import keep, machine, spread

NUM = 1280  # pairs in a run: five times as many as two workers have ready when it begins
MODES = {
    "exact": ("original", "exact"),
    "scaled": ("original", "scaled"),
    "resized at packing, shorter side": ("resized", "exact"),
    "squashed at packing": ("squashed", "exact"),
}


def main() -> None:
    options = read_options("loader", repeats=5)
    folder = options.work / "loader"
    prepare(folder, NUM)
    torch.set_num_threads(1)
    shared: dict = {"task": "load", "folder": str(folder), "num": NUM, "threads": 1, "model": ""}
    measured: dict[str, dict] = {}
    for workers in (1, 2):
        for mode, (store, decoding) in MODES.items():
            for peer in ("cn_clip", "webdataset", "files") if mode == "exact" else ("cn_clip",):
                if options.only not in (name := f"{mode}, {workers} workers / {peer}"):
                    continue
                ours = {"side": "ours", "store": store, "decoding": decoding}
                shared["workers"] = workers
                found = compare({**shared, **ours}, {**shared, "side": peer}, options.repeats)
                measured[name] = {"num": NUM, **found}
                print(f"{name}: {spread(found['ratio'])} times as fast", flush=True)
    result = {"model": "loader", **machine(1), "rows": measured}
    keep("loader", result, options.results)


if __name__ == "__main__":
    main()
