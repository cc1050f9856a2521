"""`watch`: what is kept of what people ask, and when it counts as another kind of question. No stage reads it."""

from typing import Annotated, Literal

from pydantic import Field

from clip_core.config.section import Count, Section, Share


class Watch(Section):
    keep: Literal["nothing", "features", "texts"]  # of a query; texts: its features and its words
    share: Share  # of the text searches that are answered
    days: Count  # until what was kept is removed
    most: Count  # queries a day
    window: Annotated[int, Field(ge=50, le=5000)]  # queries that are judged together
    false_alarms: Annotated[float, Field(ge=0.005, le=0.05)]  # of the windows in which nothing has changed, at most
