"""`kill -9` at any moment of a training, `dvc repro` again: the same bytes as if nothing had happened.

The long form, at 20 random moments, is `make prove NAME=kills`.
"""

from pathlib import Path

import pytest

from tests.kills import (
    after_a_checkpoint,
    after_seconds,
    before_a_checkpoint,
    forget,
    go_on,
    kill,
    while_saving,
)


@pytest.mark.parametrize(
    ("stage", "moment"),
    [
        pytest.param("init", while_saving, marks=pytest.mark.slow),
        pytest.param("stage1", after_a_checkpoint, marks=pytest.mark.slow),
        ("stage2", after_a_checkpoint),
        pytest.param("stage2", while_saving, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_killed_training_goes_on_from_its_checkpoint_and_ends_with_the_same_bytes(
    stage: str, moment, project_copy: Path, smoke_project: Path
) -> None:
    forget(project_copy, stage)
    assert kill(project_copy, stage, moment), f"{stage} ended before it could be killed"
    assert not (project_copy / "models" / stage).exists(), "the killed run had already published its weights"
    saved = any((project_copy / ".work" / stage).glob("*/checkpoint-*"))
    assert (go_on(project_copy, stage, smoke_project) > 0) == saved


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["init"])
def test_a_training_killed_before_its_first_checkpoint_begins_anew_and_ends_with_the_same_bytes(
    stage: str, project_copy: Path, smoke_project: Path
) -> None:
    forget(project_copy, stage)
    assert kill(project_copy, stage, before_a_checkpoint)
    (log,) = (project_copy / ".work" / stage).glob("*/train.csv")
    assert log.read_text().count("\n") > 1  # steps were done, of which nothing may stay
    assert not any(log.parent.glob("checkpoint-*")), "the killed run had saved already"
    assert go_on(project_copy, stage, smoke_project) == 0


@pytest.mark.slow
def test_a_training_killed_before_its_first_step_starts_again(project_copy: Path, smoke_project: Path) -> None:
    forget(project_copy, "stage1")
    assert kill(project_copy, "stage1", after_seconds(1.5))
    go_on(project_copy, "stage1", smoke_project)
