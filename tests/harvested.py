"""All that a source gives, its parts one behind another."""

import pandas as pd

from clip_core.config.sources import Source
from clip_core.data.pairs import sum_counts
from clip_core.data.sources import Harvest, harvest, parts_of


def harvested(data: Source) -> Harvest:
    """The harvests of all parts as one."""
    found = [harvest(data, part) for part in parts_of(data)]
    if len(found) == 1:
        return found[0]
    return Harvest(
        pairs=pd.concat([one.pairs for one in found], ignore_index=True),
        images=(picture for one in found for picture in one.images),
        rejected=pd.concat([one.rejected for one in found], ignore_index=True),
        more=sum_counts(one.more for one in found),
    )
