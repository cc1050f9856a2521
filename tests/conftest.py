"""The small pipeline that the tests share: `dvc repro` with recipes/smoke.yaml, once per session, and copies of it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from clip_core.env import SWITCHES, set_switches
from clip_core.recipe import apply_recipes
from tests.tiny_release import gallery, narrow_release, release, tiny_releases, triton  # noqa: F401 (fixtures)
from tests.workers import IS_WORKER, made_once, one_worker_at_a_time

set_switches()  # before a test imports torch, which reads them once
if IS_WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core for each worker and what it starts
ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    **os.environ,
    **SWITCHES,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONUNBUFFERED": "1",
    "CLIP_TRITON_HOME": os.environ.get("CLIP_TRITON_HOME", str(ROOT / ".triton")),
}
ENVIRONMENT.pop("PYTHONPATH", None)  # a copy runs its own code
# The files that take longest, for two workers to end together: while the first file makes the smoke project for all,
# the next two need none.
LONG = (
    *("kill", "own_data", "pretrained_shapes", "schedule", "rerun", "supervisor", "offline", "family", "pipeline_flow"),
    *("rollout", "rollout_killed", "triton", "client", "gallery", "benchmarks", "prefect_is_closed", "triton_requests"),
    *("siglip_shapes", "soak", "gpu_run", "full_disk", "gateway", "page", "gates", "export", "deploy", "readme"),
    "results",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast files come first, so that a broken basic is seen early."""
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, -1))


def run_in(project: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs `command` in `project`, both outputs together as text; a failure shows the end of them."""
    result = subprocess.run(
        command, cwd=project, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert not check or result.returncode == 0, (
        f"{' '.join(command)}: exit {result.returncode}\n{result.stdout[-5000:]}"
    )
    return result


def without_network() -> list[str]:
    """What to put before a command so that it has loopback alone; empty where the kernel does not allow it."""
    prefix = ["unshare", "-rn", sys.executable, str(ROOT / "tests" / "loopback_only.py")]
    allowed = shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    return prefix if allowed else []


def new_project(folder: Path) -> Path:
    """The project as a newcomer's clone of it would be, in `folder`, with what set-up fetches already there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith("reports/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)  # it is of the full recipe
    for source in ("emoji", "iconpark", "teacher"):
        shutil.copytree(ROOT / ".cache" / source, folder / ".cache" / source, copy_function=os.link)
    commit_all(folder, "init", "-q", "-b", "main")
    return folder


def commit_all(project: Path, *first: str) -> None:
    """Commits everything in `project`, after the git command `first` if there is one."""
    if first:
        run_in(project, "git", *first)
    run_in(project, "git", "add", "-A")
    run_in(project, "git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "test")


@pytest.fixture(scope="session")
def smoke_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project on which `dvc repro` with the smoke recipe has finished. Read only: `project_copy` is for changing."""

    def make(folder: Path) -> None:
        project = new_project(folder / "project")
        apply_recipes([project / "recipes" / "smoke.yaml"], project / "params.yaml")
        result = run_in(project, *without_network(), "dvc", "repro")
        (project / ".work" / "repro.log").write_text(result.stdout, encoding="utf-8")

    return made_once(tmp_path_factory, "smoke", make) / "project"


def copy_of(project: Path, folder: Path) -> Path:
    """A private copy of the smoke project in `folder`, which shares DVC's cache with it."""
    copy = folder / "project"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns("cache", "tmp", ".cache", ".git", ".prefect"))
    shutil.copytree(project / ".cache", copy / ".cache", copy_function=os.link)
    (copy / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {project / '.dvc' / 'cache'}\n", encoding="utf-8")
    commit_all(copy, "init", "-q", "-b", "main")
    return copy


@pytest.fixture
def project_copy(smoke_project: Path, tmp_path: Path) -> Path:
    """A private copy of the smoke project, for changing."""
    return copy_of(smoke_project, tmp_path)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of a Prefect server."""
    from clip_core.guard import free_port
    from flows.server import server  # it reaches Prefect

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        with server(free_port()) as url:
            yield url


@pytest.fixture(scope="module")
def much_memory(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """For files with models of the real shapes: two of the largest at once would not fit into memory."""
    with one_worker_at_a_time(tmp_path_factory, "memory"):
        yield
