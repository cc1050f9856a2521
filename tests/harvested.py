"""All that a source gives, its parts one behind another."""

import pandas as pd

from clip_core.config.sources import Source
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
        more={name: sum(one.more[name] for one in found) for name in found[0].more},
    )
