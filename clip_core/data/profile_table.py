"""The profile table that Great Expectations runs over: a row a pair, with what is known of its picture and caption."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from clip_core.data.characters import characters_of
from clip_core.data.pairs import HELD_OUT
from clip_core.data.profile import FINGERPRINT

if TYPE_CHECKING:
    import pandas as pd

ACROSS = ("pair_is_new", "picture_is_one")  # the rules that other shards decide, too


def profile_pairs(
    pairs: "pd.DataFrame", images: "pd.DataFrame", repeats: Mapping[str, Collection[int]] | None = None
) -> "pd.DataFrame":
    """A row of the pair table, and a row for each picture that it does not name.

    A value that is not there to be judged (the size of a picture that can not be decoded, the caption of a picture
    without text) is null, and passes the rules about values: one fault is then found by one rule. `repeats` has for the
    rules in ACROSS the rows of `pairs` that other shards forbid.
    """
    import pandas as pd

    facts = images.drop(columns=list(FINGERPRINT))
    profile = pairs.merge(facts, on="image_id", how="left", validate="many_to_one")
    profile["picture_has_pair"] = True
    _add_picture_facts(profile)
    for rule in ACROSS:
        profile[rule] = ~profile.index.isin(list((repeats or {}).get(rule, ())))
    profile["pair_is_new"] &= ~profile["pair_id"].duplicated()
    profile["licence"] = profile["licence"].fillna("")
    _add_caption_facts(profile)
    orphans = facts[~facts["image_id"].isin(pairs["image_id"])].assign(picture_has_pair=False)
    profile = pd.concat([profile, orphans], ignore_index=True)
    profile["row"] = range(len(profile))
    return profile


def _is_alone(profile: "pd.DataFrame") -> "pd.Series":
    """Where a row of valid or test is a picture without text, or a text without picture."""
    return profile["split"].isin(HELD_OUT) & (profile[["image_id", "text_id"]].isna().sum(axis="columns") == 1)


def _add_picture_facts(profile: "pd.DataFrame") -> None:
    is_alone = _is_alone(profile)
    profile["pair_has_picture"] = profile["actual_sha256"].notna() | (is_alone & profile["image_id"].isna())
    is_recorded = profile["actual_sha256"] == profile["image_sha256"]
    profile["picture_unchanged"] = is_recorded | profile["actual_sha256"].isna()
    given = profile[["pair_id", "image_id", "text_id"]].fillna("") != ""
    profile["ids_given"] = given["pair_id"] & (given[["image_id", "text_id"]].all(axis="columns") | is_alone)


def _add_caption_facts(profile: "pd.DataFrame") -> None:
    is_caption = ~(_is_alone(profile) & profile["text_id"].isna())
    captions = profile["caption"].fillna("")
    found = characters_of(captions.tolist())
    profile["caption"] = captions.where(is_caption)
    profile["caption_length"] = found.length
    profile["cjk_share"] = found.chinese / found.length.clip(min=1)
    profile["cjk_share"] = profile["cjk_share"].where((profile["language"] == "zh") & is_caption)
    profile["script"] = found.script()
    profile[["caption_length", "script"]] = profile[["caption_length", "script"]].where(is_caption)
