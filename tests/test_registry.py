"""The registry: each model has exactly the reference's parameters, and its costs are counted without allocating."""

import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip_core.model.costs import architecture_of, costs_of, forward_costs, on_meta
from clip_core.model.registry import MODELS
from tests.conftest import ENVIRONMENT, ROOT
from tests.tiny import IMAGE_SIZE, tiny_clip

# The reference's own counts: total, image tower with its projection, text tower, text projection.
REFERENCE = {
    "rn50": (76_989_537, 38_316_896, 37_886_208, 786_432),
    "vit-b-32": (189_919_489, 87_849_216, 101_677_056, 393_216),
    "vit-b-16": (188_262_913, 86_192_640, 101_677_056, 393_216),
    "vit-l-14": (406_233_089, 303_966_208, 101_677_056, 589_824),
    "vit-l-14-336": (406_560_769, 304_293_888, 101_677_056, 589_824),
    "vit-h-14": (957_598_209, 632_076_800, 324_472_832, 1_048_576),
}
MEASURED_PROGRAM = (
    "import pathlib, runpy; runpy.run_module('clip_core.model.costs', run_name='__main__'); "
    # not ru_maxrss, which begins with that of the process it was started by
    "print(*[line for line in pathlib.Path('/proc/self/status').read_text().splitlines() if 'VmHWM' in line])"
)


def vit_flops(width: int, layers: int, patches: int, patch_size: int, embed_dim: int) -> int:
    positions = patches + 1
    block = 2 * positions * 12 * width**2 + 4 * positions**2 * width
    return 2 * patches * 3 * patch_size**2 * width + layers * block + 2 * width * embed_dim


def bert_flops(width: int, layers: int, length: int, embed_dim: int) -> int:
    return layers * (2 * length * 12 * width**2 + 4 * length**2 * width) + 2 * width * embed_dim


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """The lines of the command, and behind them its memory at the highest."""
    command = [sys.executable, "-c", MEASURED_PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", REFERENCE)
def test_a_model_has_exactly_the_parameters_of_the_reference(name: str, printed: list[str]) -> None:
    (cells,) = (line.split() for line in printed if line.startswith(f"{name} "))
    total, image_tower, image_projection, text_tower, text_projection, logit_scale = (
        int(cell.replace(",", "")) for cell in cells[1:7]
    )
    assert (total, image_tower + image_projection, text_tower, text_projection) == REFERENCE[name]
    assert logit_scale == 1


def test_the_command_prints_a_line_for_each_model_and_allocates_none_of_them(printed: list[str]) -> None:
    titles, *lines = printed
    assert titles.split()[:2] == ["model", "parameters"]
    assert [line.split()[0] for line in lines[: len(MODELS)]] == list(MODELS)
    assert len({len(line) for line in printed[: len(MODELS) + 1]}) == 1  # the columns stand below each other
    assert any("For tiny this is assumed" in line for line in lines)
    peak = int(lines[-1].split()[1]) / 2**20
    assert peak < 2, f"{peak:.2f} GiB, and the largest model alone has 3.6"


def test_the_flops_are_those_of_the_formula_and_of_the_reference() -> None:
    found = {name: costs_of(name) for name in ("vit-b-16", "vit-l-14-336", "vit-h-14")}
    assert found["vit-b-16"].image_flops == vit_flops(768, 12, 14**2, 16, 512)
    assert found["vit-l-14-336"].image_flops == vit_flops(1024, 24, 24**2, 14, 768)
    assert found["vit-h-14"].image_flops == vit_flops(1280, 32, 16**2, 14, 1024)
    assert found["vit-b-16"].text_flops == bert_flops(768, 12, 52, 512)
    assert found["vit-h-14"].text_flops == bert_flops(1024, 24, 52, 1024)
    assert round(found["vit-b-16"].image_flops / 1e9, 2) == 35.13
    assert round(found["vit-b-16"].text_flops / 1e9, 2) == 8.93


def test_the_activations_counted_are_those_that_a_real_forward_keeps() -> None:
    real = tiny_clip()
    weightless = on_meta(real.architecture)
    pixels = torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    token_ids = torch.ones(1, 16, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH):
        for name, inputs in (("encode_images", pixels), ("encode_texts", token_ids)):
            wanted = forward_costs(real, getattr(real, name), inputs)
            assert forward_costs(weightless, getattr(weightless, name), inputs.to("meta")) == wanted
            assert min(wanted) > 0


def test_every_released_size_of_picture_and_text_fits_its_tower() -> None:
    architecture = architecture_of("vit-l-14-336")
    assert architecture.image_size == 336
    assert architecture.text_tower.options["max_position_embeddings"] == 512


def test_the_registry_is_read_without_torch() -> None:
    program = "import sys, clip_core.model.registry; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
