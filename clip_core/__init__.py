"""Chinese CLIP: `clip_core.load(folder)` gives a `Predictor`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_core.predictor import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    # Resolved on first use, so that light commands do not pay for torch.
    if name == "load":
        from clip_core.predictor import load

        return load
    raise AttributeError(f"module 'clip_core' has no attribute {name!r}")
