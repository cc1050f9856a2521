"""The Great Expectations suites: named rules about the rows of a shard, and about all shards together."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clip_core.config.validation import Validate
from clip_core.data.pairs import CAPTION_KINDS, LANGUAGES, SPLITS

if TYPE_CHECKING:
    import pandas as pd

UNREADABLE = r"[\x00-\x1f\x7f\ufffd]"  # control characters, and the mark of bytes decoded in a wrong encoding
BETWEEN, LENGTH = "ColumnValuesToBeBetween", "ColumnValueLengthsToBeBetween"
MATCH, NO_MATCH, IN_SET = "ColumnValuesToMatchRegex", "ColumnValuesToNotMatchRegex", "ColumnValuesToBeInSet"
MEAN = "ColumnMeanToBeBetween"
# A histogram of the aggregate -> what it is of, for a reader.
DRIFTING = {
    "caption_length": "the captions' lengths",
    "side": "the pictures' shorter sides",
    "bytes": "the encoded pictures' sizes",
}
# A benchmark that loses its hard pictures and its odd texts is an easier one. So a row of valid or test that breaks one
# of these rules stays, and the ids that do are counted.
QUALITY = {
    "picture_side": "image_id",
    "picture_bytes": "image_id",
    "picture_aspect": "image_id",
    "caption_length": "text_id",
    "caption_readable": "text_id",
    "language_known": "text_id",
    "caption_kind_known": "text_id",
    "licence_given": "pair_id",
}


@dataclass(frozen=True)
class Rule:
    """One expectation. A row that breaks a rule about rows is rejected; data that break one about all are refused.

    See QUALITY for the rows of valid and test.
    """

    name: str
    description: str
    expectation: str  # Great Expectations' class, without "Expect"
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """What came out for a rule."""

    rule: Rule
    passed: bool
    rows: tuple[int, ...]  # the table's rows that break it


def _rule(name: str, description: str, expectation: str, column: str, **arguments: object) -> Rule:
    return Rule(name, description, expectation, {"column": column} | arguments)


def rules_of(params: Validate) -> list[Rule]:
    """The suite over a profile table. A row is rejected under the first rule that it breaks; null values pass."""
    limits = params.limits

    def holds(name: str, description: str) -> Rule:  # the profile has a column of this name
        return _rule(name, description, IN_SET, name, value_set=[True])

    return [
        holds("picture_has_pair", "every picture belongs to a pair"),
        holds("pair_has_picture", "the pair's picture is there"),
        holds("picture_unchanged", "the picture's sha256 is the recorded one"),
        holds("picture_decodes", "the picture can be decoded to its end"),
        _rule("picture_side", "the shorter side is long enough (pixels)", BETWEEN, "side", min_value=limits.min_side),
        _rule("picture_pixels", "the picture has not too many pixels", BETWEEN, "pixels", max_value=limits.max_pixels),
        _rule("picture_bytes", "the encoded picture is not too large", BETWEEN, "bytes", max_value=limits.max_bytes),
        _rule("picture_aspect", "longer side by shorter side", BETWEEN, "aspect", max_value=limits.max_aspect),
        holds("picture_is_one", "no earlier shard has other bytes under the picture's id"),
        holds("pair_is_new", "no earlier row has the same pair_id"),
        # in valid and test image_id or text_id may be null: see pairs.py
        holds("ids_given", "pair_id, image_id and text_id are not blank"),
        _rule("caption_given", "the caption is not blank", MATCH, "caption", regex=r"\S"),
        _rule("caption_length", "the caption is short enough", LENGTH, "caption", max_value=limits.max_caption_length),
        _rule("caption_readable", "no control or replacement characters", NO_MATCH, "caption", regex=UNREADABLE),
        _rule("language_known", "the language is known", IN_SET, "language", value_set=list(LANGUAGES)),
        _rule(
            "caption_kind_known", "the kind of caption is known", IN_SET, "caption_kind", value_set=list(CAPTION_KINDS)
        ),
        _rule("split_known", "the split is known", IN_SET, "split", value_set=list(SPLITS)),
        _rule("licence_given", "the licence is not blank", MATCH, "licence", regex=r"\S"),
    ]


def rules_about_all(params: Validate) -> list[Rule]:
    """The suite over the one row of what is known of all shards: a column for each rule; null values pass."""

    def at_most(name: str, description: str, limit: float) -> Rule:
        return _rule(name, description, BETWEEN, name, max_value=limit)

    return [
        _rule("batch_not_empty", "the number of rows read", BETWEEN, "batch_not_empty", min_value=1),
        at_most("few_rows_are_bad", "the share of the rows that is rejected", params.max_bad_share),
        _rule(  # the mean of one value: unlike the others, it may not be null
            "batch_is_chinese",
            "the mean share of Chinese characters in the captions marked zh",
            MEAN,
            "batch_is_chinese",
            min_value=params.min_mean_cjk_share,
        ),
        at_most(
            "captions_differ",
            "the share of the rows whose caption an earlier one has",
            params.max_duplicate_captions,
        ),
        at_most(
            "pictures_differ",
            "the share of the pictures whose bytes an earlier one has",
            params.max_duplicate_pictures,
        ),
        at_most(
            "splits_are_apart",
            "the share of the distinct pictures that lie in several splits",
            params.max_split_overlap,
        ),
        *(
            at_most(f"drift_of_{measure}", f"how far {what} have drifted from the baseline", params.max_drift)
            for measure, what in DRIFTING.items()
        ),
    ]


def findings_of(profile: "pd.DataFrame", rules: list[Rule]) -> list[Finding]:
    """Runs a suite over a table that numbers its rows in `row`: what came out, in the order of `rules`."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    source = context.data_sources.add_pandas("memory")
    batch = source.add_dataframe_asset("profile").add_batch_definition_whole_dataframe("all")
    expectations = [
        getattr(gx.expectations, f"Expect{rule.expectation}")(**rule.arguments, meta={"rule": rule.name})
        for rule in rules
    ]
    suite = context.suites.add(gx.ExpectationSuite("pairs", expectations=expectations))
    definition = gx.ValidationDefinition(name="pairs", data=batch, suite=suite)
    result_format = {
        "result_format": "COMPLETE",
        "unexpected_index_column_names": ["row"],
        "include_unexpected_rows": False,
    }
    result = context.validation_definitions.add(definition).run(
        batch_parameters={"dataframe": profile}, result_format=result_format
    )
    by_name = {one["expectation_config"]["meta"]["rule"]: one for one in result.to_json_dict()["results"]}
    return [_finding(rule, by_name[rule.name]) for rule in rules]


def _finding(rule: Rule, result: dict) -> Finding:
    if raised := {info["exception_message"] for info in _exceptions(result["exception_info"])}:
        raise RuntimeError(f"the rule {rule.name} could not be run: {'; '.join(map(str, raised))}")
    details = result["result"]
    rows = tuple(sorted(index["row"] for index in details.get("unexpected_index_list") or []))
    return Finding(rule, result["success"], rows)


def _exceptions(info: dict) -> list[dict]:
    """Great Expectations gives one report, or one for each metric."""
    reports = [info] if "raised_exception" in info else list(info.values())
    return [report for report in reports if report["raised_exception"]]
