"""One side of a comparison, in a process of its own: it works when told so and sleeps otherwise.

It reads a line `number of runs` and answers a line of JSON; the first line tells that it is ready, and the most memory
of a run above what was there before.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import forget_peak, peak


def main(spec: dict) -> None:
    """Makes the side that `spec` describes, runs it once to warm up and then as often as it is told."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # peers print, and so do processes that a side starts
    from benchmarks.sides import make

    run = make(spec)
    before = forget_peak()
    found = run()
    memory = peak() - before
    np.save(Path(spec["found"]), found)
    run()
    print(json.dumps({"memory": memory}), file=answers, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            run()
        print(json.dumps({"seconds": time.perf_counter() - start}), file=answers, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
