"""What runs every night: the pipeline, the promotion of what it made, and the rollout where nobody has to approve."""

import asyncio
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from clip_core.all_params import load_params
from clip_core.project import SERVING
from clip_core.serve import releases
from flows.outage import go_on_without_the_lease
from flows.pipeline import pipeline
from flows.promote import promote
from flows.rollout import rollout

go_on_without_the_lease()  # here, since a worker imports this module and runs the flow


@flow
async def nightly(
    retries: int = 1,
    seconds_before_retry: float = 20,
    max_parallel: int = 1,
    stage_hours: float | None = None,
    remote: str | None = None,
) -> State:
    """Brings every stage up to date and decides about the newest release; all their steps are this run's tasks.

    Args:
        retries: how often a stage that failed is tried again; one that refused its input is not.
        seconds_before_retry: for a killed run's successor: DVC calls a stage busy until the old one has ended.
        max_parallel: how many stages run at once.
        stage_hours: how long a stage may take; one that takes longer is stopped. Without it there is no limit.
        remote: a remote of DVC's: what other machines have put there is not made again, and what is made goes there.
    """
    state = await pipeline.fn(retries, seconds_before_retry, max_parallel, stage_hours, remote)
    if not state.is_completed():
        return state
    if not releases.added(SERVING):
        return Completed(message="no release: the pipeline has no stage deploy")
    # Threads: the promotion computes, and the server is to hear meanwhile that this run is alive.
    is_promoted = await asyncio.to_thread(promote.fn)
    if is_promoted and not load_params(Path("params.yaml")).promotion.approval:
        return Completed(message=await asyncio.to_thread(rollout.fn))
    return Completed(message="promoted" if is_promoted else "what served serves on")
