"""Two hosts, as network namespaces that one cable joins: stage 1 by torchrun on both, `ingest` on a Ray of both.

Wants root, for `ip netns`. Both hosts see one folder, as on a cluster.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clip_core.recipe import apply_recipes
from tests.conftest import ENVIRONMENT, new_project, run_in
from tests.kills import REPRO, folder_bytes, forget, set_devices
from tests.prefect_api import until

HOSTS = {"clip-a": "10.83.0.1", "clip-b": "10.83.0.2"}  # namespace -> address of its end of the cable
CABLE = "cable"
PORT = 29_500
STAGE1 = ("--packed", "data/packed", "--start", "models/init", "--out", "models/stage1", "--curves", "reports/stage1")


def prove() -> dict:
    """What each part took, and that its bytes are those of one host."""
    with ExitStack() as stack:
        project = new_project(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "project")
        apply_recipes([project / "recipes" / "smoke.yaml"], project / "params.yaml")
        set_devices(project, 2)
        run_in(project, "dvc", "repro", "stage1")
        stack.enter_context(joined())
        return {"hosts": list(HOSTS.values()), "training": trained(project), "ray": on_ray(project)}


def trained(project: Path) -> dict:
    """Stage 1, two processes on one host against one on each of two; then one of the two is lost."""
    on_one = folder_bytes(project / "models" / "stage1")
    forget(project, "stage1")
    start = time.monotonic()
    said = [rank.communicate(timeout=600)[0] for rank in torchrun(project)]
    seconds = time.monotonic() - start
    assert folder_bytes(project / "models" / "stage1") == on_one, said
    shutil.rmtree(project / "models" / "stage1")
    ranks = torchrun(project)
    until(lambda: any((project / ".work" / "stage1").glob("*/checkpoint-*")), every=0.01)
    lost = subprocess.run(["ip", "netns", "pids", "clip-b"], check=True, capture_output=True, text=True).stdout.split()
    subprocess.run(["kill", "-9", *lost], check=True)
    start = time.monotonic()
    said = [rank.communicate(timeout=600)[0] for rank in ranks]
    noticed = time.monotonic() - start
    assert all(rank.returncode for rank in ranks), said
    assert not (project / "models" / "stage1").exists()
    said = [rank.communicate(timeout=600)[0] for rank in torchrun(project)]
    assert any("resuming at step" in one for one in said), said
    assert folder_bytes(project / "models" / "stage1") == on_one
    return {
        "seconds_with_the_start": round(seconds, 1),
        "same_bytes_as_two_processes_on_one_host": True,
        "seconds_until_the_other_has_ended_when_a_host_is_killed": round(noticed, 1),
        "resumed_to_the_same_bytes": True,
    }


def torchrun(project: Path) -> list[subprocess.Popen]:
    """The launcher of each host, with one process of stage 1."""
    options = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={HOSTS['clip-a']}:{PORT}")
    launcher = str(Path(sys.executable).with_name("torchrun"))
    return [
        begun(
            project,
            host,
            *(launcher, *options, f"--rdzv-conf=is_host={int(host == 'clip-a')}", f"--local-addr={address}"),
            *("-m", "--", "stages.stage1", *STAGE1),
        )
        for host, address in HOSTS.items()
    ]


def on_ray(project: Path) -> dict:
    """`ingest` in a process pool against a Ray cluster whose head does no work, with a worker on each host."""
    alone = folder_bytes(project / "data" / "raw")
    head, ray = HOSTS["clip-a"], str(Path(sys.executable).with_name("ray"))
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, ExitStack() as stack:
        options = ("start", "--block", "--disable-usage-stats", "--object-store-memory=80000000")

        nodes = []

        def start(host: str, *arguments: str) -> None:
            process = begun(project, host, ray, *options, f"--node-ip-address={HOSTS[host]}", *arguments)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            nodes.append(process)

        def status() -> str:
            for node in nodes:  # it gives itself up where one of its parts is not up after 15 seconds
                assert node.poll() is None, node.communicate()[0][-3000:]
            return asked(project, "clip-a", ray, "status", f"--address={head}:{PORT}").stdout

        first = ("--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}")
        start("clip-a", *first)
        until(lambda: "cluster status" in status())
        for number, host in enumerate(HOSTS, 1):
            start(host, f"--address={head}:{PORT}", "--num-cpus=1")
            until(lambda there=f"/{number}.0 CPU": there in status())
        file = project / "params.yaml"
        text = file.read_text(encoding="utf-8").replace("maps: local", "maps: ray")
        file.write_text(text.replace("address: null", f"address: {head}:{PORT}"), encoding="utf-8")
        shutil.rmtree(project / ".work" / "kept" / "ingest")
        begin = time.monotonic()
        done = asked(project, "clip-a", *REPRO, "--single-item", "--force", "ingest")
        assert done.returncode == 0, done.stdout
        seconds = time.monotonic() - begin
    assert folder_bytes(project / "data" / "raw") == alone
    return {"seconds_of_ingest_with_the_start": round(seconds, 1), "same_bytes_as_a_process_pool": True}


@contextmanager
def joined() -> Generator[None]:
    """Two network namespaces with a cable between them."""
    with ExitStack() as stack:
        for host in HOSTS:
            ip("netns", "add", host)
            stack.callback(ip, "netns", "del", host)
        ip("link", "add", CABLE, "netns", "clip-a", "type", "veth", "peer", "name", CABLE, "netns", "clip-b")
        for host, address in HOSTS.items():
            in_host(host, "ip", "address", "add", f"{address}/24", "dev", CABLE)
            for interface in ("lo", CABLE):
                in_host(host, "ip", "link", "set", interface, "up")
        yield


def begun(project: Path, host: str, *command: str) -> subprocess.Popen:
    """A command at work on a host."""
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *command],
        cwd=project,
        env=ENVIRONMENT
        | {"GLOO_SOCKET_IFNAME": CABLE, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(project)}
        | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(HOSTS)))},  # as two ranks on one host have
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def asked(project: Path, host: str, *command: str) -> subprocess.CompletedProcess:
    """A command that has ended on a host."""
    process = begun(project, host, *command)
    said, _ = process.communicate(timeout=600)
    return subprocess.CompletedProcess(command, process.returncode, said)


def in_host(host: str, *command: str) -> None:
    ip("netns", "exec", host, *command)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
