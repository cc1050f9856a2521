"""All of `params.yaml`. The stage `check` alone reads it whole; every other one reads the sections that it names."""

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from clip_core.config.ablation import Ablation
from clip_core.config.curation import Curate
from clip_core.config.deploy import Deploy
from clip_core.config.engine import Engine
from clip_core.config.evaluation import Evaluate
from clip_core.config.export import Export
from clip_core.config.gates import Gates
from clip_core.config.gateway import Gateway
from clip_core.config.index import Index
from clip_core.config.init import Init
from clip_core.config.intervals import Intervals
from clip_core.config.loader import Loader
from clip_core.config.model import AnyModel, Model
from clip_core.config.packing import Pack
from clip_core.config.promotion import Promotion
from clip_core.config.releases import Releases
from clip_core.config.section import Section, Seed
from clip_core.config.sources import Source
from clip_core.config.stage1 import Stage1
from clip_core.config.stage2 import Stage2
from clip_core.config.text_start import TextStart
from clip_core.config.train import Train
from clip_core.config.validation import Validate
from clip_core.config.watch import Watch


class Params(Section):
    """Every section."""

    seed: Seed
    data: Source
    engine: Engine
    validate_: Annotated[Validate, Field(alias="validate")]  # pydantic owns the bare name
    curate: Curate
    pack: Pack
    model: Model
    text_start: TextStart
    init: Init
    stage1: Stage1
    stage2: Stage2
    intervals: Intervals
    loader: Loader
    train: Train
    evaluate: Evaluate
    gates: Gates
    export: Export
    index: Index
    deploy: Deploy
    releases: Releases
    promotion: Promotion
    watch: Watch
    gateway: Gateway
    ablation: Ablation

    @field_validator("export")
    @classmethod
    def _exported_width_was_trained(cls, export: Export, others: ValidationInfo) -> Export:
        model: AnyModel | None = others.data.get("model")  # none when it is wrong itself
        if model and export.width is not None and export.width not in model.matryoshka:
            trained = list(model.matryoshka)
            raise ValueError(f"width ({export.width}) must be one of model.matryoshka {trained}, or null")
        return export
