"""Deletion requests and housekeeping as flows, with a form on Prefect's page."""

from prefect import flow

from clip_core.serve.rollout import just_run
from flows import forget as request
from flows.housekeeping import keep_house
from flows.rollout import as_task, said


@flow
def forget(kind: request.Kind, value: str, yes: bool = False) -> str:
    """Deletes a picture, a caption or a whole source from data, caches and releases.

    Args:
        kind: what `value` names.
        value: a picture's id or the sha256 of its bytes, a caption as it is written, or the name of a source.
        yes: without it nothing is done but told what would be.
    """
    return said(request.forget(kind, value, yes, as_task if yes else just_run))


@flow
def housekeeping(days: float = 14, yes: bool = False) -> str:
    """Removes what nobody needs any more: trainings that can not go on, unused results, old releases, DVC's cache.

    Args:
        days: how long a training must lie still, or a result be of no use, before it goes.
        yes: without it nothing is done but told what would go.
    """
    return said("\n".join(keep_house(days, yes)))
