"""What the manifests for clusters tell torchrun is what dvc.yaml tells Python."""

import re
import shlex

import pytest
from ruamel.yaml import YAML
from torch.distributed.run import parse_args

from tests.conftest import ROOT

NODE = {"$SLURM_NNODES": "2", "$SLURM_GPUS_ON_NODE": "8", "$SLURM_JOB_ID": "7", "$first": "a"}


def by_dvc(stage: str) -> list[str]:
    """The stage's command in dvc.yaml, from its module on."""
    command = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage]["cmd"]
    return command.replace("=", " ").split()[2:]


def by_torchrun(*arguments: str) -> list[str]:
    """What torchrun starts, as it understands its arguments itself."""
    asked = parse_args(list(arguments))
    assert asked.module
    return [asked.training_script, *" ".join(asked.training_script_args).replace("=", " ").split()]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_slurm_starts_the_stage_as_dvc_does(stage: str) -> None:
    script = (ROOT / "deploy" / "slurm" / "train.sbatch").read_text(encoding="utf-8").replace("\\\n", "")
    (start,) = re.findall(rf"{stage}\) start=(\w+)", script)
    (command,) = re.findall(r"^srun .*? \S+/torchrun (.*)", script, re.MULTILINE)
    for name, value in (NODE | {"$stage": stage, "$start": start}).items():
        command = re.sub(re.escape(name) + r"\b", value, command)
    assert by_torchrun(*shlex.split(command)) == by_dvc(stage)


def test_kubernetes_starts_stage_2_as_dvc_does() -> None:
    job = YAML(typ="safe").load(ROOT / "deploy" / "kubernetes" / "train.yaml")
    replicas = job["spec"]["pytorchReplicaSpecs"].values()
    commands = [replica["template"]["spec"]["containers"][0]["command"] for replica in replicas]
    assert len(commands) == 2
    for torchrun, *arguments in commands:
        assert torchrun.endswith("/torchrun")
        assert by_torchrun(*arguments) == by_dvc("stage2")
