"""Complete the OpenAPI document with what FastAPI cannot know: refusals, the lines of a stream, keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

MEANINGS = {
    401: "no valid key",
    413: "the body is too large",
    415: "the body is not declared to be JSON, or is compressed",
    421: "not a name of this server",
    422: "something in the request is not what it must be",
    429: "this client has used up its allowance; see Retry-After",
    500: "a fault of the server, which its log describes; nothing in a request should lead to one",
    503: "too much is waiting, no model is ready or it failed; see Retry-After",
}
RETRY_AFTER = {"Retry-After": {"description": "whole seconds", "schema": {"type": "integer", "minimum": 1}}}
CHALLENGE = {"WWW-Authenticate": {"description": "how to give the key", "schema": {"type": "string"}}}
HEADERS: dict[int, dict[str, Any]] = {401: CHALLENGE, 429: RETRY_AFTER, 503: RETRY_AFTER}

Responses = dict[int | str, dict[str, Any]]


def refusals(*statuses: int) -> Responses:
    """Describe the responses of a route that are not answers."""
    # written out: by `model` FastAPI would declare them in the media type of the route's answers
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    return {
        status: {"description": MEANINGS[status], "content": content, "headers": HEADERS.get(status, {})}
        for status in statuses
    }


# arguments of the decorators of each kind of route
CLASSIFYING: dict[str, Any] = {"responses": refusals(401, 413, 415, 421, 422, 429, 500, 503)}
DESCRIBING: dict[str, Any] = {"responses": refusals(401, 413, 421, 500, 503)}
OPEN: dict[str, Any] = {"responses": refusals(413, 421)}
READY: dict[str, Any] = {"responses": refusals(413, 421, 503)}
LINE = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {
                "text": {"type": "string"},
                "pair": {"type": ["string", "null"], "description": "second text, where the model classifies pairs"},
                "language": {"type": ["string", "null"], "maxLength": 40, "description": "null where to guess"},
                "id": {"type": ["string", "number", "null"], "description": "comes back with the answer"},
            },
            "required": ["text"],
            "additionalProperties": False,
        },
    ]
}


def streaming(route: str) -> dict[str, Any]:
    """Return the arguments of the decorator of a stream, whose results are those of a `route`."""
    lines = {"application/x-ndjson": {"schema": {"type": "string"}}}
    answered = {
        "description": "a line for every line that is not empty: its number as `line`, and a result as of "
        f"`{route}` with `model_version`, or an `error`",
        "content": lines,
    }
    asked = {"description": "lines of JSON, each as in the schema `Line`", "required": False, "content": lines}
    return {
        "responses": {200: answered, **refusals(401, 415, 421, 422, 500, 503)},
        "openapi_extra": {"requestBody": asked},
    }


KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def complete(app: FastAPI, keys: bool) -> None:
    """Complete an application's document, once it has all its routes; `keys` is whether it asks for them."""
    made = app.openapi()  # which FastAPI keeps and serves
    parts = made.setdefault("components", {})
    parts["schemas"] |= {"ErrorResponse": _ERROR, "Line": LINE}
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form, which nothing here answers in
        parts["schemas"].pop(name, None)
    if not keys:
        return
    parts["securitySchemes"] = KEY_SCHEMES
    for path in made["paths"].values():
        for operation in path.values():
            if "401" in operation["responses"]:
                operation["security"] = [{name: []} for name in KEY_SCHEMES]


_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string", "description": "to act on, such as `overloaded`"},
                "message": {"type": "string", "description": "a sentence for people"},
            },
            "required": ["code", "message"],
        }
    },
    "required": ["error"],
}
