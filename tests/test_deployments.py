"""The deployments of prefect.yaml: each names a flow, with a form for its parameters."""

from importlib import import_module
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema

from clip_core.params_file import read_yaml
from flows.platform import QUEUE
from tests.conftest import ROOT


def fields_of(deployment: dict) -> dict[str, Any]:
    """The fields of the form that Prefect's page shows."""
    module, _, name = deployment["entrypoint"].rpartition(".")
    return parameter_schema(getattr(import_module(module), name)).properties


@pytest.mark.parametrize("deployment", read_yaml(ROOT / "prefect.yaml")["deployments"], ids=lambda one: one["name"])
def test_a_deployment_names_a_flow_whose_form_has_a_type_and_a_word_on_each_field(deployment: dict) -> None:
    fields = fields_of(deployment)
    assert deployment.get("parameters", {}).keys() <= fields.keys()
    for name, field in fields.items():
        assert field.get("type") or field.get("anyOf"), name
        assert field.get("description"), name


def test_those_that_train_have_one_queue_out_of_which_the_platform_lets_one_go_at_a_time() -> None:
    deployments = read_yaml(ROOT / "prefect.yaml")["deployments"]
    queued = {one["name"] for one in deployments if one["work_pool"].get("work_queue_name") == QUEUE}
    assert queued == {"nightly", "on-new-data", "finetune", "sweep"}
