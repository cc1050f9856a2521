"""`export`: the ONNX files, and how near to torch they must be."""

from typing import Annotated, Literal

from pydantic import Field

from clip_core.config.section import Count, Positive, Section, Share

Width = Count | None  # of the features that are evaluated, exported and served: one of model.matryoshka; null: all
Precision = Literal["fp32", "fp16", "int8"]


class Export(Section):
    width: Width
    opset: Annotated[int, Field(ge=18, le=23)]
    # Of the fp32 export, whatever is served.
    max_feature_difference: Positive
    tie_margin: Positive  # scores closer than this may change places in the top 10
    # Of what is served, against torch.
    precision: Precision
    min_cosine: Share
    min_top10_overlap: Share
    max_recall_difference: Share  # of the mean recall
