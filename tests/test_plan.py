"""What is planned is what a step takes, and what does not fit is refused with the remedy."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clip_core.errors import UserError
from clip_core.train import fits
from clip_core.train.devices import GIB, KINDS, Device, free_memory
from clip_core.train.fits import refuse_stages, too_large
from clip_core.train.footprint import Live
from clip_core.train.loss import nested_loss
from clip_core.train.plan import main
from clip_core.train.planned import Devices, Plan, loss_at_once
from clip_core.train.setup import Setup
from clip_core.train.usual_lr import unusual_lr
from tests.conftest import ROOT
from tests.step_memory import measured, small_vit
from tests.tiny import tiny_training

SMALL = replace(KINDS["cpu"], memory=GIB // 8)


def planned(global_batch: int = 64, device: Device = KINDS["cpu"], num_devices: int = 1, **changes: object) -> Plan:
    is_sharded, is_frozen = bool(changes.pop("is_sharded", False)), bool(changes.pop("is_frozen", False))
    params = tiny_training().model_copy(update={"global_batch": global_batch, **changes})
    return Plan(Setup(params, 1, is_frozen), small_vit(), Devices(device, num_devices, is_sharded))


@pytest.mark.parametrize(
    ("precision", "micro_batch", "checkpoints"),
    [
        ("fp32", None, False),
        pytest.param("bf16", None, False, marks=pytest.mark.slow),
        pytest.param("fp32", None, True, marks=pytest.mark.slow),
        ("fp32", 32, False),
    ],
)
def test_the_planned_memory_is_within_15_percent_of_what_a_step_takes(
    precision: str, micro_batch: int | None, checkpoints: bool
) -> None:
    found = measured(precision, micro_batch, checkpoints, "small", 64)
    assert found["planned"] == pytest.approx(found["measured"], rel=0.15)


def test_a_micro_batch_checkpoints_and_a_frozen_tower_take_less() -> None:
    whole = sum(planned().memory().values())
    for changes in ({"micro_batch": 8}, {"checkpoint_activations": True}, {"is_frozen": True}, {"precision": "bf16"}):
        assert sum(planned(64, KINDS["cpu"], 1, **changes).memory().values()) < whole * 0.8, changes


def test_sharded_devices_divide_weights_and_moments_and_replicated_ones_do_not() -> None:
    one, replicated, sharded = planned(), planned(num_devices=4), planned(num_devices=4, is_sharded=True)
    assert replicated.memory()["weights"] == one.memory()["weights"] == 4 * (sharded.memory()["weights"])
    assert sharded.memory()["AdamW's moments"] * 4 == one.memory()["AdamW's moments"]
    assert replicated.local_batch == 16
    assert replicated.seconds() < one.seconds()


def test_what_fits_is_the_largest_micro_batch_and_only_then_activation_checkpoints() -> None:
    plan = planned(device=SMALL)
    fitting = plan.that_fits()
    assert not plan.fits() and fitting is not None and fitting.fits()
    rows = fitting.setup.params.micro_batch
    assert rows and 64 % rows == 0 and not plan.with_micro_batch(2 * rows).fits()
    tight = planned(device=replace(SMALL, memory=sum(plan.with_micro_batch(1).memory().values()) - 1))
    with_checkpoints = tight.that_fits()
    assert with_checkpoints is not None and with_checkpoints.setup.params.checkpoint_activations
    assert planned(device=replace(SMALL, memory=1)).that_fits() is None


def test_a_training_that_does_not_fit_is_refused_before_init_with_the_micro_batch_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params_file = tmp_path / "params.yaml"
    params_file.write_bytes((ROOT / "params.yaml").read_bytes())
    refuse_stages(params_file, is_pretrained=False)
    monkeypatch.setattr(fits, "this_device", lambda: replace(KINDS["cpu"], memory=120 * 2**20))
    with pytest.raises(UserError, match=r"stage2: a step of 128 pairs .* Write stage2.micro_batch: \d+: the same") as e:
        refuse_stages(params_file, is_pretrained=False)
    rows = int(str(e.value).partition("micro_batch: ")[2].partition(":")[0])
    text = params_file.read_text(encoding="utf-8")
    first, second = text.split("stage2: #")
    second = second.replace("micro_batch: null", f"micro_batch: {rows}", 1)
    params_file.write_text(f"{first}stage2: #{second}", encoding="utf-8")
    refuse_stages(params_file, is_pretrained=False)  # what it told one to write fits


def test_where_nothing_fits_it_says_so() -> None:
    assert "No micro batch fits" in too_large("stage2", planned(device=replace(SMALL, memory=1)))


def test_the_free_memory_is_some_and_no_more_than_a_container_may_have() -> None:
    assert 0 < free_memory() < 2**50


def test_a_rate_far_above_the_recipes_is_told_and_theirs_are_not() -> None:
    def warned(batch: int, lr: float) -> str | None:
        params = tiny_training()
        schedule = params.schedule.model_copy(update={"peak_lr": lr})
        return unusual_lr("stage2", params.model_copy(update={"global_batch": batch, "schedule": schedule}))

    for batch, lr in ((48, 3e-6), (12_800, 2e-5), (7_680, 5e-5), (24_576, 6e-5), (4_096, 6e-5), (32_768, 1e-4)):
        assert warned(batch, lr) is None
    assert "stage2.schedule.peak_lr is 5.0e-05 with a global batch of 48" in str(warned(48, 5e-5))


def test_the_built_in_training_starts_at_random_and_is_not_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    refuse_stages(ROOT / "params.yaml", is_pretrained=False)
    assert "warning" not in capsys.readouterr().out
    refuse_stages(ROOT / "params.yaml", is_pretrained=True)
    assert "warning: stage1.schedule.peak_lr is 3.0e-03" in capsys.readouterr().out


def test_the_command_prints_memory_time_and_cost_for_any_number_of_devices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--devices", "1", "1024", "--device", "h200", "cpu", "--price", "3"]
    monkeypatch.setattr("sys.argv", [*arguments, "--params-file", str(ROOT / "params.yaml")])
    main()
    told = capsys.readouterr().out
    assert "stage2: global batch 128, micro_batch null, fp32, on h200" in told
    assert "activations, image side" in told and "1,024" in told and "no GPU has run it" in told


@pytest.mark.parametrize(("global_batch", "widths"), [(3000, (64,)), (3000, (64, 32))])
def test_the_loss_takes_what_is_planned_for_it(global_batch: int, widths: tuple[int, ...]) -> None:
    images, texts = (torch.randn(global_batch, widths[0]).requires_grad_() for _ in range(2))
    scale = torch.zeros((), requires_grad=True)
    with Live([images, texts, scale]) as live:
        nested_loss("contrastive", images, texts, scale, None, widths).backward()
    assert live.most == pytest.approx(loss_at_once(global_batch, widths), rel=0.05)
