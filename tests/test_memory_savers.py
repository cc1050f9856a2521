"""bf16 arithmetic and activation checkpoints: less memory, the same training."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from clip_core.model import precision
from clip_core.model.clip import CLIP
from clip_core.train.activations import checkpoint_activations
from clip_core.train.backward import with_precision_resolved
from clip_core.train.feature_cache import freeze_image_tower
from tests.test_grad_cache import assert_close, batch_of, step, with_micro_batch
from tests.tiny import tiny_clip
from tests.variants import vit_clip

MAKERS = {"vit": vit_clip, "resnet": tiny_clip}


def bytes_saved(model: CLIP, **changes: object) -> int:
    """Bytes of activations kept for the backward pass."""
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        step(model, with_micro_batch(None, **changes))
    return kept


@pytest.mark.parametrize("tower", list(MAKERS))
@pytest.mark.parametrize("micro_batch", [None, 5])
def test_activations_computed_again_give_the_same_gradients_and_statistics(tower: str, micro_batch: int | None) -> None:
    plain, saving = MAKERS[tower](), MAKERS[tower]()
    checkpoint_activations(saving)
    assert_close(step(saving, with_micro_batch(micro_batch)), step(plain, with_micro_batch(micro_batch)))
    for name, buffer in plain.named_buffers():  # running statistics count each picture once
        assert torch.allclose(saving.get_buffer(name), buffer, atol=1e-6), name


def test_fewer_activations_are_kept() -> None:
    plain, saving = vit_clip(), vit_clip()
    checkpoint_activations(saving)
    assert bytes_saved(saving) < bytes_saved(plain) / 2


def test_a_model_that_saves_activations_encodes_as_before() -> None:
    model, pixels, token_ids = vit_clip().eval(), batch_of().images, batch_of().token_ids
    with torch.inference_mode():
        before = model.encode_images(pixels), model.encode_texts(token_ids)
        checkpoint_activations(model)
        after = model.encode_images(pixels), model.encode_texts(token_ids)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_tower_that_cannot_compute_activations_again_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_timm_says_no(tower: torch.nn.Module, enable: bool = True) -> None:
        assert not enable, "gradient checkpointing not supported"

    model = vit_clip()
    monkeypatch.setattr(type(model.image_tower), "set_grad_checkpointing", as_timm_says_no)
    with pytest.raises(ValueError, match="the image_tower vit_base_patch16_clip_quickgelu_224 cannot compute"):
        checkpoint_activations(model)
    freeze_image_tower(model)
    checkpoint_activations(model)  # a frozen tower keeps none anyway


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_bf16_gradients_point_where_those_of_fp32_do(micro_batch: int | None) -> None:
    (loss, wanted), (bf16_loss, found) = (
        step(vit_clip(dropout=0.0), with_micro_batch(micro_batch, precision=name)) for name in ("fp32", "bf16")
    )
    assert abs(loss - bf16_loss) < 0.02
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    for name in ("image_projection.weight", "text_projection.weight"):
        assert torch.cosine_similarity(wanted[name].flatten(), found[name].flatten(), dim=0) > 0.98, name


def test_auto_trains_in_what_the_machine_is_good_at_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for has_bf16, taken in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(precision, "_multiplies_bf16", lambda device, has_bf16=has_bf16: has_bf16)
        assert with_precision_resolved(with_micro_batch(None, precision="auto")).precision == taken
        assert f"precision auto: {taken}, " in capsys.readouterr().err
    assert with_precision_resolved(with_micro_batch(None, precision="bf16")).precision == "bf16"


def test_in_bf16_the_towers_multiply_in_bf16_and_weights_and_features_are_fp32() -> None:
    model = vit_clip()
    found = {}

    def note(name: str) -> Callable:
        return lambda module, inputs, output: found.__setitem__(name, output.dtype)

    model.image_tower.get_submodule("blocks.0.mlp.fc1").register_forward_hook(note("image"))
    model.text_tower.get_submodule("encoder.encoder.layer.0.intermediate.dense").register_forward_hook(note("text"))
    with torch.autocast("cpu", torch.bfloat16):
        features = model.encode_images(batch_of().images), model.encode_texts(batch_of().token_ids)
    assert found == {"image": torch.bfloat16, "text": torch.bfloat16}
    assert all(part.dtype == torch.float32 for part in features)
    assert all(torch.allclose(part.norm(dim=1), torch.ones(len(part)), atol=1e-6) for part in features)
    step(model, with_micro_batch(None, precision="bf16"))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
