"""What /v1 takes and gives, as JSON; OpenAPI's description is made of it."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue

from clip_core.config.section import Section, Template
from clip_core.serve.release import GALLERY_NAME, RELEASE_ID

MODEL = "chinese-clip"
MAX_INPUTS = 2048
MAX_FOUND = 1000  # pictures of a search, on all its pages
DATA_URL = r"^data:image/[a-z.+-]+;base64,"
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw=="

Id = Annotated[str, Field(pattern=f"^{RELEASE_ID.pattern}$", description="of a release")]
Gallery = Annotated[str, Field(pattern=f"^{GALLERY_NAME.pattern}$", description="none: the release's first")]
Picture = Annotated[str, Field(pattern=DATA_URL, description="a data URL: JPEG, PNG, WebP and others")]
Weight = Annotated[float, Field(ge=1e-3, le=1e3)]  # of both a float32 sees what the other leaves
Label = Annotated[str, Field(min_length=1, max_length=1000)]
Probability = Annotated[float | None, Field(description="that it matches; null without a calibration")]


def _example(**values: JsonValue) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [values]})


class EmbeddingsQuestion(Section):
    """Texts and pictures (data URLs), in any order."""

    model_config = _example(model=MODEL, input=["一只猫", PIXEL], encoding_format="float")
    model: Annotated[
        str,
        Field(pattern=f"^({MODEL}|{RELEASE_ID.pattern})$", description=f"{MODEL}, or the release that has to answer"),
    ]
    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Annotated[
        Literal["float", "base64"], Field(description="base64: of float32 numbers, little-endian")
    ] = "float"
    dimensions: Annotated[int | None, Field(description="none but what the model has")] = None
    user: Annotated[str | None, Field(description="ignored")] = None


class Embedding(Section):
    object: Literal["embedding"]
    index: int
    embedding: Annotated[list[float] | str, Field(description="of length 1")]


class Usage(Section):
    """Tokens are not counted: 0."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Section):
    object: Literal["list"]
    data: list[Embedding]
    model: Annotated[str, Field(description="the release that has answered")]
    usage: Usage


class SearchQuestion(Section):
    """A text, a picture, or both: then what resembles the weighted mean of their features."""

    model_config = _example(text="一只猫", limit=5)
    text: str | None = None
    image: Picture | None = None
    text_weight: Weight = 1.0
    image_weight: Weight = 1.0
    gallery: Gallery | None = None
    filter: Annotated[
        dict[str, str | int | float | bool | None] | None,
        Field(description="values of the gallery's metadata; a picture must have all of them"),
    ] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 10
    offset: Annotated[int, Field(ge=0, lt=MAX_FOUND)] = 0
    release: Annotated[Id | None, Field(description="of the first page: 409 when another one serves by now")] = None


class Hit(Section):
    image_id: str
    score: Annotated[float, Field(description="the cosine")]
    probability: Annotated[Probability, Field(description="null also when a picture was given")]
    name: str
    image: Annotated[str, Field(description="the path of the picture, here")]


class SearchAnswer(Section):
    release: Id
    gallery: str
    num_pictures: Annotated[int, Field(description="that were searched: in the gallery, as the filter wants them")]
    hits: list[Hit]
    next_offset: Annotated[int | None, Field(description="of the next page; null: there is none")]


class ClassifyQuestion(Section):
    """A picture, labels of one's own, and templates in which {} stands for a label."""

    model_config = _example(image=PIXEL, labels=["猫", "狗"], templates=["一张{}的照片"])
    image: Picture
    labels: Annotated[list[Label], Field(min_length=1, max_length=MAX_INPUTS)]
    templates: Annotated[
        list[Annotated[Template, Field(max_length=1000)]] | None,
        Field(min_length=1, description="none: our general"),
    ] = None


class Judged(Section):
    label: str
    score: Annotated[float, Field(description="the cosine")]
    probability: Annotated[Probability, Field(description="that it is right, whatever the others are; null: unknown")]
    share: Annotated[float | None, Field(description="its probability if just one label is right; null: unknown")]


class ClassifyAnswer(Section):
    release: Id
    labels: Annotated[list[Judged], Field(description="the best first")]


class Fault(Section):
    message: str
    type: Literal["input", "key", "not_found", "limit", "overload", "internal"]
    param: None
    code: None


class Problem(Section):
    """What is said instead of an answer."""

    error: Fault
    id: Annotated[str, Field(description="of the request; it stands in the log")]
