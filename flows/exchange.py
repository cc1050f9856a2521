"""The two tasks of a run that exchange results with other machines, through a remote of DVC's (flows/remote.py)."""

from prefect import task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.heard import heard


class RemoteFailed(RuntimeError):
    """A remote of DVC's is away, or refuses; what is here stays."""


@task
async def exchange(verb: str, remote: str) -> State:
    """Gets results of other machines from a remote of DVC's, or puts ours there."""
    code, last_lines = await heard("flows.remote", verb, remote)
    if code != 0:
        said = " ".join(last_lines)[-300:]
        raise RemoteFailed(f"remote {remote}: {verb} failed, and what is made here stays here: {said}")
    return Completed(name="Exchanged", message=f"{remote}: {verb} done")


async def exchanged(verb: str, remote: str, seconds_before_retry: float) -> State:
    """The state in which `exchange` ends after its retries, each of which waits twice as long as the one before."""
    delays = [seconds_before_retry * 2**number for number in range(3)]
    patient = exchange.with_options(name=f"{verb} {remote}", retries=len(delays), retry_delay_seconds=delays)
    return await patient(verb, remote, return_state=True)  # ty: ignore[invalid-await]: as in flows/pipeline.py
