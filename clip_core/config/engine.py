"""`engine`: where the work on shards runs: no stage's params name it, for it decides no bit."""

from typing import Literal

from clip_core.config.section import Count, Name, Section


class Engine(Section):
    """The processes of this machine, or Ray's workers, who must see the project's folder under the same path."""

    maps: Literal["local", "ray"]
    processes: Count | None  # at once; null: one a core (of Ray: as many as it has)
    address: Name | None  # of a Ray cluster; null: one of its own on this machine
