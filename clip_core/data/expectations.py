"""The Great Expectations suite over the profile table: named rules about rows, and about the batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clip_core.config.validation import Validate
from clip_core.data.pairs import CAPTION_KINDS, LANGUAGES, SPLITS

if TYPE_CHECKING:
    import pandas as pd

UNREADABLE = r"[\x00-\x1f\x7f\ufffd]"  # control characters, and the mark of bytes decoded in a wrong encoding
BETWEEN, LENGTH = "ColumnValuesToBeBetween", "ColumnValueLengthsToBeBetween"
MATCH, NO_MATCH, IN_SET = "ColumnValuesToMatchRegex", "ColumnValuesToNotMatchRegex", "ColumnValuesToBeInSet"
COUNT, MEAN = "TableRowCountToBeBetween", "ColumnMeanToBeBetween"
OF_THE_BATCH = (COUNT, MEAN)
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
    """One expectation. A row that breaks a rule about rows is rejected; a batch that breaks one about it is refused.

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
    rows: tuple[int, ...]  # the profile's rows that break it; none where the rule is about the batch
    observed: float | None  # where the rule is about the batch


def rules_of(params: Validate) -> list[Rule]:
    """The suite. A row is rejected under the first rule that it breaks; null values pass (see `profile_pairs`)."""
    limits = params.limits

    def rule(name: str, description: str, expectation: str, column: str | None = None, **arguments: object) -> Rule:
        return Rule(name, description, expectation, ({"column": column} if column else {}) | arguments)

    def holds(name: str, description: str) -> Rule:  # the profile has a column of this name
        return rule(name, description, IN_SET, name, value_set=[True])

    return [
        holds("picture_has_pair", "every picture belongs to a pair"),
        holds("pair_has_picture", "the pair's picture is there"),
        holds("picture_unchanged", "the picture's sha256 is the recorded one"),
        holds("picture_decodes", "the picture can be decoded to its end"),
        rule("picture_side", "the shorter side is long enough (pixels)", BETWEEN, "side", min_value=limits.min_side),
        rule("picture_pixels", "the picture has not too many pixels", BETWEEN, "pixels", max_value=limits.max_pixels),
        rule("picture_bytes", "the encoded picture is not too large", BETWEEN, "bytes", max_value=limits.max_bytes),
        rule("picture_aspect", "longer side by shorter side", BETWEEN, "aspect", max_value=limits.max_aspect),
        holds("pair_is_new", "no earlier row has the same pair_id"),
        # in valid and test image_id or text_id may be null: see pairs.py
        holds("ids_given", "pair_id, image_id and text_id are not blank"),
        rule("caption_given", "the caption is not blank", MATCH, "caption", regex=r"\S"),
        rule("caption_length", "the caption is short enough", LENGTH, "caption", max_value=limits.max_caption_length),
        rule("caption_readable", "no control or replacement characters", NO_MATCH, "caption", regex=UNREADABLE),
        rule("language_known", "the language is known", IN_SET, "language", value_set=list(LANGUAGES)),
        rule(
            "caption_kind_known", "the kind of caption is known", IN_SET, "caption_kind", value_set=list(CAPTION_KINDS)
        ),
        rule("split_known", "the split is known", IN_SET, "split", value_set=list(SPLITS)),
        rule("licence_given", "the licence is not blank", MATCH, "licence", regex=r"\S"),
        rule("batch_not_empty", "there is a row at all", COUNT, min_value=1),
        rule(
            "batch_is_chinese",
            "the mean share of Chinese characters in the captions marked zh",
            MEAN,
            "cjk_share",
            min_value=params.min_mean_cjk_share,
        ),
    ]


def findings_of(profile: "pd.DataFrame", rules: list[Rule]) -> list[Finding]:
    """Runs the suite over the profile table: what came out, in the order of `rules`."""
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
    return Finding(
        rule, result["success"], rows, details.get("observed_value") if rule.expectation in OF_THE_BATCH else None
    )


def _exceptions(info: dict) -> list[dict]:
    """Great Expectations gives one report, or one for each metric."""
    reports = [info] if "raised_exception" in info else list(info.values())
    return [report for report in reports if report["raised_exception"]]
