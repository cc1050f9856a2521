"""`evaluate`: how a benchmark is measured."""

from typing import Annotated

from pydantic import Field

from clip_core.config.section import Section, Template

PromptTemplates = Annotated[tuple[Template, ...], Field(min_length=1)]  # for zero-shot classification
Query = Annotated[str, Field(pattern=r"\S")]
Confidence = Annotated[float, Field(gt=0.5, lt=1)]


class Evaluate(Section):
    num_bootstrap: Annotated[int, Field(ge=100)]
    confidence: Confidence
    prompt_templates: PromptTemplates
    free_queries: tuple[Query, ...] = ()
