"""Define the forms of requests and responses, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from serve.settings import Limits
from xlt_ray.supervision import MEANING


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, data: Any) -> Any:
        # each unknown key is a fault that costs time to write down, and a body has room for 100,000
        if isinstance(data, dict) and len(data) > 20:
            raise ValueError(f"{len(data)} keys; known are {', '.join(cls.model_fields)}")
        return data


class Score(BaseModel):
    label: str
    score: float = Field(description="probability, 0 to 1")


class DetectedLanguage(BaseModel):
    code: str | None = Field(description="such as swh_Latn; null where it cannot be guessed")
    name: str | None
    confidence: float = Field(description="0 to 1; 1 where the client named the language")


class ExpectedAccuracy(BaseModel):
    accuracy: float = Field(description="share of test rows in this language that the model labelled right")
    low: float = Field(description="lower bound of the 95% interval over test rows")
    high: float
    rows: int = Field(description="test rows it was measured on")
    trained_on: bool = Field(description="whether labels in this language were trained on")
    supervision: str | None = Field(
        description="what was read of the language in making the model, which its accuracy has to be compared by: "
        + "; ".join(f"{rung}: {meaning}" for rung, meaning in MEANING.items())
        + "; null: a source, all labels, or not recorded"
    )
    calibration_error: float | None = Field(
        description="how far confidence is from the share of right answers in this language, 0 to 1; null: not measured"
    )


class Reliability(BaseModel):
    low: float = Field(description="confidence from which test rows were counted")
    high: float = Field(description="confidence up to which they were counted")
    rows: int = Field(description="test rows answered with such a confidence")
    right: int = Field(description="how many of them were labelled right")
    language: str | None = Field(
        description="code of the language of these rows; null: all zero-shot languages together, where nothing was "
        "measured in the text's own"
    )


class Reading(BaseModel):
    name: str = Field(description="`original`, or how it was translated")
    weight: float = Field(description="of its scores in the mean over the text's readings, 0 to 1; they sum to 1")
    text: str
    pair: str | None = Field(None, description="second text, where the model classifies pairs")


class Result(BaseModel):
    label: str | None = Field(description="null: abstained, as the confidence is below `min_confidence`")
    confidence: float = Field(
        description="probability of the likeliest label, 0 to 1, calibrated on the languages that were trained on; "
        "`reliability` is how often it came true"
    )
    abstained: bool
    scores: list[Score]
    language: DetectedLanguage
    expected_accuracy: ExpectedAccuracy | None = Field(description="null: not measured in this language")
    reliability: Reliability | None = Field(
        description="how often answers as confident as this one were right on test rows; null: not measured"
    )
    read: str = Field(
        description="how the text was read, such as `original + 3 word-by-word English readings`, whose scores are "
        "averaged; `original` where its language is unknown or has no lexicon"
    )
    readings: list[Reading] | None = Field(None, description="the text as it was read; where `readings` is asked for")


class AnsweringModel(BaseModel):
    name: str
    version: str
    precision: str


class ClassifyResponse(BaseModel):
    model: AnsweringModel
    results: list[Result]


class ExpectedQuality(BaseModel):
    metric: str = Field(description="what was measured: f1 of spans with their type; of other tags accuracy")
    value: float = Field(description="of the metric on test rows in this language, 0 to 1")
    low: float = Field(description="lower bound of the 95% interval over test rows")
    high: float
    rows: int = Field(description="test rows it was measured on")
    trained_on: bool = Field(description="whether tags in this language were trained on")
    supervision: str | None = Field(description="what was read of the language in making the model")
    calibration_error: float | None = Field(
        description="how far the scores of words are from the share of right tags, 0 to 1; null: not measured"
    )


class Place(BaseModel):
    text: str
    start: int = Field(description="its first character in the text as it was sent, counted in Unicode code points")
    end: int = Field(description="the character behind its last")


class TaggedSpan(Place):
    type: str
    score: float = Field(description="the least score of its words, 0 to 1")


class TaggedWord(Place):
    tag: str
    score: float = Field(description="probability of the tag, 0 to 1, calibrated on the languages trained on")


class TagResult(BaseModel):
    spans: list[TaggedSpan] = Field(description="in order; none where tags are not of spans")
    words: list[TaggedWord] = Field(
        description="all of them in order: runs of letters and digits, any other character but white space alone, and "
        "in scripts without spaces every character"
    )
    language: DetectedLanguage
    expected_quality: ExpectedQuality | None = Field(description="null: not measured in this language")


class TagResponse(BaseModel):
    model: AnsweringModel
    results: list[TagResult]


class FeedbackResponse(BaseModel):
    models: dict[str, dict[str, Any]]


class WeighedReading(BaseModel):
    name: str
    weight: float = Field(description="0 to 1; single languages may weigh them otherwise, which their answers show")


class ModelReadings(BaseModel):
    into: str = Field(description="code of the language that texts are translated into")
    into_name: str
    each: list[WeighedReading] = Field(description="the readings of a text in a language that has a lexicon")
    languages: int = Field(description="how many languages have a lexicon; texts in others are read as they stand")


class ModelResponse(BaseModel):
    model: AnsweringModel
    labels: list[str]
    pairs: bool
    max_length: int
    min_confidence: float = Field(description="below it an answer has no label, unless the request asks otherwise")
    readings: ModelReadings | None = Field(description="null: texts are read as they stand")
    languages: list[dict[str, Any]]
    provenance: dict[str, Any]
    vocabulary: dict[str, Any]
    checks: dict[str, Any]
    limits: dict[str, Any]
    texts_logged: bool = Field(description="whether the server writes texts and answers to its log")
    replica: str
    loading: str
    problem: str
    challenger: dict[str, Any] | None


class WordsModelResponse(ModelResponse):
    task: str
    types: list[str] = Field(description="of spans; none where tags are not of spans")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "blank; leave it out")
    return text


def of_words(limits: Limits) -> type[Request]:
    """Make the form of `tag` under a server's limits."""
    text = Annotated[str, Field(max_length=limits.characters), AfterValidator(_not_blank)]
    codes = Annotated[str, Field(max_length=40)] | None

    class TagRequest(Request):
        texts: list[text] = Field(min_length=1, max_length=limits.texts)  # type: ignore[valid-type]
        languages: list[codes] | None = Field(
            None, max_length=limits.texts, description="language of each text, null where to guess; any usual code"
        )

    return TagRequest


def requests(limits: Limits) -> tuple[type[Request], type[Request]]:
    """Make the forms of `classify` and `feedback` under a server's limits, so that its OpenAPI document states them."""
    text = Annotated[str, Field(max_length=limits.characters)]
    many = Field(min_length=1, max_length=limits.texts)
    codes = Annotated[str, Field(max_length=40)] | None

    class ClassifyRequest(Request):
        texts: list[text] = many  # type: ignore[valid-type]
        pairs: list[text] | None = Field(  # type: ignore[valid-type]
            None, max_length=limits.texts, description="second texts, where the model classifies pairs"
        )
        languages: list[codes] | None = Field(  # type: ignore[valid-type]
            None, max_length=limits.texts, description="language of each text, null where to guess; any usual code"
        )
        top_k: int = Field(1, ge=1, le=1000, description="labels to return for each text, the most probable first")
        min_confidence: float | None = Field(
            None,
            ge=0,
            le=1,
            description="no label where the confidence is lower; default: what the server is set to",
        )
        readings: bool = Field(False, description="return every text as it was read too")

    class FeedbackRequest(Request):
        texts: list[text] = many  # type: ignore[valid-type]
        labels: list[Annotated[str, Field(max_length=1000)]] = Field(  # the right ones
            min_length=1, max_length=limits.texts, description="the right label of each text"
        )
        pairs: list[text] | None = Field(None, max_length=limits.texts)  # type: ignore[valid-type]
        languages: list[codes] | None = Field(None, max_length=limits.texts)  # type: ignore[valid-type]

    return ClassifyRequest, FeedbackRequest
