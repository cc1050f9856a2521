"""`index`: how the gallery is searched."""

from typing import Annotated, Literal

from pydantic import Field

from clip_core.config.section import Name, Section, Share

TopK = Annotated[int, Field(ge=1, le=100)]


class Index(Section):
    kind: Literal["exact", "hnsw", "ivf_pq", "milvus"]
    top_k: TopK
    min_recall: Share  # of the index against the exact search
    metadata: tuple[Name, ...]  # columns of the pair table by which searches may be filtered
