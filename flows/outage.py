"""A run goes on while Prefect's server does not answer: a training is worth more than its record."""

from contextlib import AbstractAsyncContextManager
from uuid import UUID

from prefect import flow_engine
from prefect.concurrency._leases import amaintain_concurrency_lease


def go_on_without_the_lease() -> None:
    """Has this process's runs go on when the lease on their deployment's slot can not be renewed.

    Prefect 3.8 cancels such a run after three minutes or so, to keep the limit, and has no setting for it. Beyond the
    limit a second run can do no harm: DVC calls a stage busy that another run has.
    """

    def maintain(lease_id: UUID, seconds: float, **_: object) -> AbstractAsyncContextManager[None]:
        return amaintain_concurrency_lease(lease_id, seconds)  # which only warns, unless told to raise

    flow_engine.amaintain_concurrency_lease = maintain  # ty: ignore[invalid-assignment]
