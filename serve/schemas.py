"""The forms of requests and responses, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve.settings import Limits


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
    code: str | None = Field(description="such as swh_Latn; null where it cannot be told")
    name: str | None
    confidence: float = Field(description="0 to 1; 1 where the client named the language")


class ExpectedAccuracy(BaseModel):
    accuracy: float = Field(description="share of test rows in this language that the model labelled right")
    low: float = Field(description="lower bound of the 95% interval over test rows")
    high: float
    rows: int = Field(description="test rows it was measured on")
    trained_on: bool = Field(description="whether labels in this language were trained on")


class Result(BaseModel):
    label: str
    scores: list[Score]
    language: DetectedLanguage
    expected_accuracy: ExpectedAccuracy | None = Field(description="null: not measured in this language")


class AnsweringModel(BaseModel):
    name: str
    version: str
    precision: str


class ClassifyResponse(BaseModel):
    model: AnsweringModel
    results: list[Result]


class FeedbackResponse(BaseModel):
    models: dict[str, dict[str, Any]]


class ModelResponse(BaseModel):
    model: AnsweringModel
    labels: list[str]
    pairs: bool
    max_length: int
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
        top_k: int = Field(1, ge=1, le=1000, description="labels to give for each text, the most probable first")

    class FeedbackRequest(Request):
        texts: list[text] = many  # type: ignore[valid-type]
        labels: list[Annotated[str, Field(max_length=1000)]] = Field(  # the right ones
            min_length=1, max_length=limits.texts, description="the right label of each text"
        )
        pairs: list[text] | None = Field(None, max_length=limits.texts)  # type: ignore[valid-type]
        languages: list[codes] | None = Field(None, max_length=limits.texts)  # type: ignore[valid-type]

    return ClassifyRequest, FeedbackRequest
