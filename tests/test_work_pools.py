"""deploy/prefect: job templates that Prefect's server and its workers for Docker and Kubernetes take."""

import json
import sys
from importlib.resources import files
from typing import Any

import pytest
from prefect.utilities.templating import apply_values

from tests.conftest import ENVIRONMENT, ROOT, run_in
from tests.prefect_api import ask

KINDS = ("docker", "kubernetes")
OF_PREFECT = json.loads(
    files("prefect.server.api.collections_data.views")
    .joinpath("aggregate-worker-metadata.json")
    .read_text(encoding="utf-8")
)


def template(kind: str) -> dict:
    return json.loads((ROOT / "deploy" / "prefect" / f"{kind}.json").read_text(encoding="utf-8"))


def job(kind: str, **variables: object) -> dict[str, Any]:
    """What the worker makes of the template, of its defaults and of what the run names."""
    properties = template(kind)["variables"]["properties"]
    values = {name: one["default"] for name, one in properties.items() if "default" in one} | variables
    return apply_values(template(kind)["job_configuration"], values)


@pytest.mark.parametrize("kind", KINDS)
def test_the_worker_knows_every_key_and_a_form_has_a_word_on_each_field(kind: str) -> None:
    known = OF_PREFECT[f"prefect-{kind}"][kind]["default_base_job_configuration"]["job_configuration"]
    ours = template(kind)
    assert ours["job_configuration"].keys() <= known.keys()
    assert all(field["title"] and field["description"] for field in ours["variables"]["properties"].values())
    asked = {name for name in ours["variables"]["properties"] if f"{{{{ {name} }}}}" in json.dumps(ours)}
    assert asked == ours["variables"]["properties"].keys()
    assert "{{" not in json.dumps(job(kind, command="prefect flow-run execute", name="night", labels={}))


def test_a_container_sees_the_project_under_the_path_that_its_flow_changes_to() -> None:
    docker, pod = job("docker"), job("kubernetes")["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert f"{docker['env']['CLIP_PROJECT']}:{docker['env']['CLIP_PROJECT']}" in docker["volumes"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["project"] == container["env"]["CLIP_PROJECT"]
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}


def test_kubernetes_takes_the_job() -> None:
    validator: Any = pytest.importorskip(
        "kubernetes_validate", reason="no kubernetes-validate (70 MB of schemas): uv pip install kubernetes-validate"
    )
    manifest = job("kubernetes", command=["prefect"], name="night", labels={})["job_manifest"]
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    container["env"] = [
        {"name": name, "value": value} for name, value in container["env"].items()
    ]  # as the worker does
    validator.validate(manifest, "1.30", strict=True)


def test_a_deployment_runs_on_a_pool_of_either_template_which_refuses_what_is_of_another_type(
    api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.server import as_client  # it reaches Prefect

    for name, value in (as_client(api) | {"CLIP_PROJECT": str(ROOT)}).items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    prefect = (sys.executable, "-m", "prefect")
    for kind in KINDS:
        file = ROOT / "deploy" / "prefect" / f"{kind}.json"
        run_in(ROOT, *prefect, "work-pool", "create", "--type", kind, "--base-job-template", str(file), kind)
        deploy = (*prefect, "--no-prompt", "deploy", "--name", "nightly", "--pool", kind)
        run_in(ROOT, *deploy, "--job-variable", "image=clip:7")
        (deployed,) = [one for one in ask(api, "deployments/filter") if one["work_pool_name"] == kind]
        assert deployed["job_variables"] == {"image": "clip:7"}
    wrong = run_in(ROOT, *deploy, "--job-variable", '{"gpus": "all"}', check=False)
    assert wrong.returncode
    assert "is not of type" in " ".join(wrong.stdout.split())
