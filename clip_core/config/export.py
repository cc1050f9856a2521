"""`export`: the ONNX files, and how near to torch they must be."""

from typing import Annotated

from pydantic import Field

from clip_core.config.section import Count, Positive, Section

Width = Count | None  # of the features that are evaluated, exported and served: one of model.matryoshka; null: all


class Export(Section):
    width: Width
    opset: Annotated[int, Field(ge=18, le=23)]
    max_feature_difference: Positive
    tie_margin: Positive  # scores closer than this may change places in the top 10
