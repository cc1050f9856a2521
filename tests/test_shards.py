"""The map over shards: what is done is kept, and where and how often it runs changes no byte."""

import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import ray

from clip_core import kept
from clip_core.config.engine import Engine
from clip_core.data import shards
from clip_core.data.shards import Task, map_shards
from clip_core.errors import UserError
from clip_core.guard import free_port
from tests import shard_work
from tests.conftest import ENVIRONMENT, ROOT
from tests.prefect_api import until

PROCESSES = 2
LOCAL = Engine(maps="local", processes=PROCESSES, address=None)
LETTERS = ("ab", "cd", "kill", "ef", "gh")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for letters in LETTERS:
        (tmp_path / letters).write_text(letters, encoding="utf-8")
    return tmp_path


def mapped(work: Callable[..., None], *names: str, engine: Engine = LOCAL, decides: tuple = ()) -> dict[str, str]:
    """Shard -> what its work wrote."""
    tasks = [Task(name, work, (Path(name).absolute(),), (Path(name),), decides) for name in names or LETTERS]
    return {
        shard: (out / "reversed.txt").read_text(encoding="utf-8")
        for shard, out in map_shards("ingest", tasks, engine).items()
    }


def times_done() -> dict[str, int]:
    return {name: len(log.read_text(encoding="utf-8")) for name in LETTERS if (log := Path(f"{name}.log")).exists()}


def test_each_shard_is_worked_on_once_and_a_new_one_alone() -> None:
    assert mapped(shard_work.reverse, "ab", "cd") == {"ab": "ba", "cd": "dc"}
    assert mapped(shard_work.reverse, "ab", "cd", "ef") == {"ab": "ba", "cd": "dc", "ef": "fe"}
    assert times_done() == {"ab": 1, "cd": 1, "ef": 1}


def test_a_changed_file_and_another_value_of_params_are_worked_on_again() -> None:
    mapped(shard_work.reverse, "ab", "cd")
    Path("ab").write_text("xyz", encoding="utf-8")
    assert mapped(shard_work.reverse, "ab", "cd") == {"ab": "zyx", "cd": "dc"}
    assert times_done() == {"ab": 2, "cd": 1}
    mapped(shard_work.reverse, "ab", "cd", decides=(1,))
    assert times_done() == {"ab": 3, "cd": 2}


def test_a_file_that_only_the_work_knows_of_counts_as_well(project: Path) -> None:
    neighbour = project / "cd"

    def run() -> None:
        task = Task("one", shard_work.reverse_with_neighbour, (project / "ab", neighbour), (project / "ab",))
        map_shards("ingest", [task], LOCAL)

    run()
    run()
    assert times_done() == {"ab": 1}
    neighbour.write_text("changed", encoding="utf-8")
    run()
    neighbour.unlink()
    run()
    run()
    assert times_done() == {"ab": 3}


def test_a_mistake_in_one_shard_is_told_and_what_others_made_is_kept() -> None:
    Path("ef").write_text("bad", encoding="utf-8")
    with pytest.raises(UserError, match="ef: bad"):
        mapped(shard_work.refuse, engine=LOCAL.model_copy(update={"processes": 1}))
    Path("ef").write_text("ef", encoding="utf-8")
    assert mapped(shard_work.refuse)["ef"] == "fe"
    assert times_done() == dict.fromkeys(LETTERS, 1)


def test_a_killed_process_is_told_with_the_remedy_and_the_next_run_does_the_rest() -> None:
    with pytest.raises(UserError, match=r"killed.*memory.*engine\.processes"):
        mapped(shard_work.reverse_or_be_killed)
    assert mapped(shard_work.reverse_or_be_killed) == {name: name[::-1] for name in LETTERS}
    times = times_done()
    assert times.keys() == set(LETTERS)
    assert sum(times.values()) < len(LETTERS) + PROCESSES  # what the others were in the midst of ended with the pool


def test_a_stage_killed_half_way_goes_on_where_it_was(project: Path) -> None:
    script = project / "run.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom tests import shard_work\nfrom tests.test_shards import mapped\n"
        "if __name__ == '__main__':\n    mapped(shard_work.reverse_slowly)\n"
    )
    process = subprocess.Popen([sys.executable, script], env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)})
    until(times_done)
    process.kill()
    process.wait()
    time.sleep(1)  # its processes end with it
    before = times_done()
    assert 0 < len(before) < len(LETTERS)
    assert mapped(shard_work.reverse_slowly) == {name: name[::-1] for name in LETTERS}
    assert max(times_done().values()) <= 2
    assert sum(times_done().values()) <= len(LETTERS) + PROCESSES


def test_the_command_lists_what_is_kept_and_empties_it(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    mapped(shard_work.reverse)
    for mark in ("params.yaml", "dvc.yaml"):
        (project / mark).touch()
    for arguments, expected in (([], "ingest           5 results"), (["--empty", "ingest"], "ingest: removed")):
        sys.argv = ["kept", *arguments]
        kept.main()
        assert expected in capsys.readouterr().out
    mapped(shard_work.reverse)
    assert times_done() == dict.fromkeys(LETTERS, 2)


def is_listening(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def cluster() -> Generator[tuple[str, list[subprocess.Popen]]]:
    """A Ray cluster on loopback whose head does no work, with two workers of one core: its address, the workers."""
    command_of_ray, port = str(Path(sys.executable).parent / "ray"), free_port()
    address, environment = f"127.0.0.1:{port}", ENVIRONMENT | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    options = ["--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", "--object-store-memory=80000000"]

    def start(*arguments: str) -> subprocess.Popen:
        command = [command_of_ray, "start", *options, *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)

    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it, whose paths are limited
    head = start("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}")
    processes = [head]
    try:
        until(lambda: is_listening(port))
        ray.init(address, log_to_driver=False)
        for number in (1, 2):  # one after the other: two that start at once may want the same port
            processes.append(start(f"--address={address}", "--num-cpus=1"))
            until(lambda number=number: ray.cluster_resources().get("CPU") == number)
        ray.shutdown()
        yield address, processes[1:]
    finally:
        ray.shutdown()
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def kill_when_work_has_begun(worker: subprocess.Popen) -> None:
    until(times_done)
    worker.kill()


def test_two_workers_of_a_ray_cluster_make_the_same_bytes_also_when_one_is_killed(
    cluster: tuple[str, list[subprocess.Popen]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, workers = cluster
    alone, kept_from = mapped(shard_work.reverse), kept.KEPT / "ingest"
    kept_bytes = {path.name: (path / "reversed.txt").read_bytes() for path in kept_from.iterdir()}
    shutil.rmtree(kept.KEPT)
    on_ray = Engine(maps="ray", processes=None, address=address)
    for log in Path().glob("*.log"):
        log.unlink()
    threading.Thread(target=kill_when_work_has_begun, args=(workers[0],)).start()  # a machine, in the midst of it
    assert mapped(shard_work.reverse_or_be_killed, engine=on_ray) == alone
    assert sorted(path.name for path in kept_from.iterdir()) == sorted(kept_bytes)
    assert {path.name: (path / "reversed.txt").read_bytes() for path in kept_from.iterdir()} == kept_bytes
    for worker in workers:
        worker.kill()
        worker.wait()
    monkeypatch.setattr(shards, "WITHOUT_WORKERS", 1)
    with pytest.raises(UserError, match=f"at {address} has no machine that works"):
        mapped(shard_work.reverse, engine=on_ray, decides=("something else",))
