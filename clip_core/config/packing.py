"""`pack`: the size of a shard."""

from clip_core.config.section import Count, Section


class Pack(Section):
    shard_mib: Count
