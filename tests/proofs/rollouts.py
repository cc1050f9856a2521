"""`kill -9` of a rollout at each of its steps under load: no request fails, and it goes on or back by itself."""

import tempfile
from itertools import cycle
from pathlib import Path

from tests.rollout_kills import KILLS, outcome_of_a_kill
from tests.tiny import tiny_store
from tests.tiny_release import make_release
from tests.under_load import supervised


def prove() -> dict:
    """The table: where it was killed, what that left, what put it right, and how many requests failed."""
    from clip_core.data.store import open_store

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tiny_store(folder / "store")
        store = open_store(folder / "store")
        both = make_release(folder / "one", store, seed=1), make_release(folder / "two", store, seed=2)
        table = []
        with supervised(folder / "serving", *both) as running:
            ways = cycle(("the gateway", "the next rollout", "the next start"))
            for (step, when), way in zip(KILLS, ways, strict=False):
                outcome = outcome_of_a_kill(running, both, step, when, way)
                assert (outcome.failed_requests, outcome.mixed_answers) == (0, 0), outcome
                table.append(outcome._asdict())
                print(outcome, flush=True)
    return {"kills": table, "failed_requests": 0, "mixed_answers": 0}
