"""Prefect's server and page, the deployments of `prefect.yaml` and a worker, until Ctrl-C."""

import os
import signal
import subprocess
import sys

from clip_core.errors import UserError, told_to_the_user
from clip_core.files import atomic_write
from clip_core.guard import start, stop
from clip_core.locks import signature
from clip_core.project import project_root
from flows.server import as_client, home, secret_file, server, set_environment

POOL = "clip"  # the work pool in prefect.yaml
QUEUE = "dvc"  # of the runs there that train, so that one waits for the other


def main(port: int = 4200) -> None:
    """Starts Prefect's server, UI and worker and deploys `prefect.yaml`; Ctrl-C stops it all.

    Args:
        port: of the server and its UI, on loopback.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a service manager's stop, too, is Ctrl-C
        signal.signal(number, signal.default_int_handler)
    if url := os.environ.get("PREFECT_API_URL"):
        raise UserError(f"PREFECT_API_URL names a Prefect server: {url}. Use that one, or unset PREFECT_API_URL.")
    os.chdir(project_root())  # for `prefect deploy`, which reads prefect.yaml there
    set_environment()
    try:
        serve(port)
    except KeyboardInterrupt:
        print("Stopped.", flush=True)


def serve(port: int) -> None:
    """Does the work of `main` until it is interrupted, and stops what it has started."""
    with server(port) as url:
        os.environ.update(as_client(url))
        atomic_write(home() / "running", f"{url} {signature()}")
        close_left_runs()
        prefect("work-pool", "create", "--type", "process", "--overwrite", POOL)
        prefect("--no-prompt", "deploy", "--all")
        prefect("work-queue", "set-concurrency-limit", QUEUE, "1", "--pool", POOL)
        from flows import alerts  # not before: Prefect reads its settings on import

        alerts.deploy(os.environ.get(alerts.WEBHOOK))
        worker = start([sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL])
        try:
            print(f"The page asks once for a password: it is the line in {secret_file()}")
            print(f"Prefect is up: {url.removesuffix('/api')} (Ctrl-C stops it)", flush=True)
            raise UserError(f"the Prefect worker ended by itself, with exit code {worker.wait()}")
        finally:
            print("Stopping ...", flush=True)
            stop(worker)
            close_left_runs()
            (home() / "running").unlink()


def close_left_runs() -> None:
    """Marks as crashed what the platform left when it stopped, which frees the concurrency slot for the next run."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    unfinished = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=unfinished))):
            if run.deployment_id:  # others run on a server of their own
                client.set_flow_run_state(run.id, Crashed(message="The platform stopped during this run."), force=True)


def prefect(*arguments: str) -> None:
    """Runs a `prefect` command; raises UserError with its output when it fails."""
    done = subprocess.run([sys.executable, "-m", "prefect", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"`prefect {' '.join(arguments)}` failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    import tyro

    with told_to_the_user():
        tyro.cli(main)
