"""The models that both sides load: random weights by the reference in its released layout, brought over as users do."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".work/benchmarks"
# vision_model_name, text_model_name and input_resolution of cn_clip.clip.load_from_name
NAMES = {
    "vit-b-16": ("ViT-B-16", "RoBERTa-wwm-ext-base-chinese", 224),
    "vit-h-14": ("ViT-H-14", "RoBERTa-wwm-ext-large-chinese", 224),
}
SMALL = "small"  # for the tests of the benchmarks


class Model(NamedTuple):
    """A model in three forms."""

    name: str
    released: Path  # the .pt file of cn_clip
    weights: Path  # our folder
    transformers: Path

    @property
    def tokenizer(self) -> Path:
        return self.weights / "tokenizer.json"

    def load_in_cn_clip(self, device: str) -> Any:
        """The model and its preprocessing, by cn_clip's own function where it knows the shape."""
        from cn_clip import clip as cn_clip

        if self.name in NAMES:
            vision, text, resolution = NAMES[self.name]
            return cn_clip.load_from_name(
                str(self.released),
                device=device,
                vision_model_name=vision,
                text_model_name=text,
                input_resolution=resolution,
            )
        import torch

        from tests.released import reference

        model = reference()
        tensors = torch.load(self.released, weights_only=True)["state_dict"]
        model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in tensors.items()})
        return model.float(), cn_clip.image_transform(32)


def model_at(folder: str | Path) -> Model:
    """The prepared model in `folder`."""
    folder = Path(folder)
    return Model(folder.name, folder / "released.pt", folder / "weights", folder / "transformers")


def prepare(name: str, work: Path = WORK) -> Path:
    """The folder with the model of this name in all its forms; they are made when they are not there yet."""
    model = model_at(work / name)
    model.released.parent.mkdir(parents=True, exist_ok=True)
    if not model.released.exists():
        _run(sys.executable, "-m", "benchmarks.models", name, str(model.released))
    pretrained = (sys.executable, "-m", "clip_core.model.pretrained")
    if not model.weights.exists():
        _run(*pretrained, "import", str(model.released), str(model.weights))
    if not model.transformers.exists():
        _run(*pretrained, "export", str(model.weights), str(model.transformers), "--format", "transformers")
    return model.released.parent


def _run(*command: str) -> None:
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)


def _release(name: str, file: Path) -> None:
    """Writes random weights as OFA-Sys releases them."""
    import cn_clip
    import torch

    from tests.released import reference, with_prefix

    shape: dict[str, Any] = {}
    if name in NAMES:
        configs = Path(cn_clip.__file__).parent / "clip/model_configs"
        for config in NAMES[name][:2]:
            shape |= json.loads((configs / f"{config}.json").read_text(encoding="utf-8"))
    aside = file.with_suffix(".aside")
    torch.save(
        {"epoch": 15, "step": 0, "name": name, "state_dict": with_prefix(reference(**shape).state_dict())}, aside
    )
    aside.rename(file)


if __name__ == "__main__":
    _release(sys.argv[1], Path(sys.argv[2]))
