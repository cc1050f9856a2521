"""What runs soon after new data came: the pipeline, whose stages over data work on the shards that are new."""

import asyncio
import time
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from clip_core.all_params import load_params
from clip_core.errors import UserError
from clip_core.params_file import existing
from flows.dag import has_changed
from flows.housekeeping import last_written
from flows.outage import go_on_without_the_lease
from flows.pipeline import pipeline

go_on_without_the_lease()  # here, since a worker imports this module and runs the flow


@flow
async def on_new_data(
    still_minutes: float = 10,
    retries: int = 1,
    seconds_before_retry: float = 20,
    max_parallel: int = 1,
    stage_hours: float | None = None,
    remote: str | None = None,
) -> State:
    """Brings every stage up to date when `data.path` has other bytes than `ingest` has last read; else runs nothing.

    Args:
        still_minutes: how long nothing there must have been written: a shard may still be on its way.
        retries: how often a stage that failed is tried again; one that refused its input is not.
        seconds_before_retry: for a killed run's successor: DVC calls a stage busy until the old one has ended.
        max_parallel: how many stages run at once.
        stage_hours: how long a stage may take; one that takes longer is stopped. Without it there is no limit.
        remote: a remote of DVC's: what other machines have put there is not made again, and what is made goes there.
    """
    try:
        source = existing(Path(load_params(Path("params.yaml")).data.path), "data.path")
    except UserError as error:
        return Failed(name="Refused", message=str(error))
    if not await asyncio.to_thread(has_changed, Path.cwd(), "ingest", source):
        return Completed(name="Unchanged", message=f"{source}: nothing is new")
    if time.time() - last_written(source) < 60 * still_minutes:
        return Completed(name="Waiting", message=f"{source}: written to in the last {still_minutes:g} minutes")
    return await pipeline.fn(retries, seconds_before_retry, max_parallel, stage_hours, remote)
