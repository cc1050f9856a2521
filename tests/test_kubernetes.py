"""deploy/kubernetes: manifests that Kubernetes takes, with commands and probes that exist, and few rights."""

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT

if TYPE_CHECKING:
    from clip_core.serve.triton import Server

MANIFESTS = [*YAML(typ="safe").load_all(ROOT / "deploy" / "kubernetes" / "serve.yaml")]
SERVERS = [one for one in MANIFESTS if one["kind"] == "Deployment"]
PODS = [one["spec"]["template"]["spec"] for one in SERVERS]
CONTAINERS = [one for pod in PODS for one in (*pod.get("initContainers", []), *pod["containers"])]


def named(one: dict) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


@pytest.mark.parametrize("manifest", MANIFESTS, ids=named)
def test_kubernetes_takes_the_manifest_but_not_a_misspelt_one(manifest: dict) -> None:
    validator: Any = pytest.importorskip(
        "kubernetes_validate", reason="no kubernetes-validate (70 MB of schemas): uv pip install kubernetes-validate"
    )
    for version in ("1.30", "1.37"):
        validator.validate(manifest, version, strict=True)
        with pytest.raises(validator.ValidationError):
            validator.validate(manifest | {"spec": manifest["spec"] | {"selectors": {}}}, version, strict=True)


def test_each_server_has_what_keeps_it_up_and_all_of_it_means_its_pods() -> None:
    for server in SERVERS:
        name = server["metadata"]["name"]
        labels = server["spec"]["template"]["metadata"]["labels"]
        service, budget, scaler = (
            next(one for one in MANIFESTS if named(one) == f"{kind} {name}")["spec"]
            for kind in ("Service", "PodDisruptionBudget", "HorizontalPodAutoscaler")
        )
        assert labels == server["spec"]["selector"]["matchLabels"] == service["selector"]
        assert labels == budget["selector"]["matchLabels"]
        assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        assert budget["minAvailable"] < scaler["minReplicas"]
        assert "replicas" not in server["spec"]  # or applying it again would undo what was scaled
        (container,) = server["spec"]["template"]["spec"]["containers"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        assert [port["targetPort"] for port in service["ports"]] == [port["name"] for port in container["ports"]]


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda one: one["name"])
def test_a_container_has_no_right_that_it_does_not_need(container: dict) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("pod", PODS, ids=["gateway", "triton"])
def test_a_pod_is_nobodys_and_mounts_the_volumes_that_it_has(pod: dict) -> None:
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    mounted = {
        mount["name"]
        for container in (*pod.get("initContainers", []), *pod["containers"])
        for mount in container["volumeMounts"]
    }
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("container", [one for one in CONTAINERS if "command" in one], ids=lambda one: one["name"])
def test_its_command_takes_these_options(container: dict) -> None:
    python, flag, module, *given = container["command"]
    assert (python, flag) == (".venv/bin/python", "-m")
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    options = {option.partition("=")[0] for option in given if option.startswith("--")}
    assert options and options <= set(re.findall(r"--[a-z-]+", done.stdout))


def test_the_gateway_is_asked_where_nobody_needs_a_key_and_has_time_to_end() -> None:
    from clip_core.serve.edge import PROBES

    pod = PODS[0]
    (gateway,) = pod["containers"]
    probes = {kind: gateway[kind]["httpGet"]["path"] for kind in ("readinessProbe", "livenessProbe")}
    assert probes == {"readinessProbe": "/readyz", "livenessProbe": "/livez"} and set(probes.values()) == set(PROBES)
    (drain,) = [float(one.partition("=")[2]) for one in gateway["command"] if one.startswith("--drain=")]
    looks = gateway["readinessProbe"]
    assert drain >= 3 * looks["periodSeconds"]  # failureThreshold is 3
    assert pod["terminationGracePeriodSeconds"] > drain + 65 + 10  # the last answers, and Triton's own end


def test_triton_answers_the_probe_of_grpc(triton: "Server") -> None:
    with grpc.insecure_channel(triton.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=10) == b"\x08\x01"  # SERVING
