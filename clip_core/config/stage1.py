"""`stage1`: a training with the image tower frozen, and what only that can have."""

from pydantic import model_validator

from clip_core.config.section import Count
from clip_core.config.training import Training


class Stage1(Training):
    """The text tower trains; the image tower's features are kept wherever the pictures it sees are known before."""

    num_views: Count | None  # of each picture, changed beforehand; null: changed anew, and encoded, in every step

    @model_validator(mode="after")
    def _views_differ(self) -> "Stage1":
        if self.num_views is not None and self.augmentation.name == "none":
            raise ValueError(
                f"num_views is {self.num_views}, but with augmentation 'none' all views are one, which is kept anyway: "
                "leave it null, or take an augmentation"
            )
        return self
