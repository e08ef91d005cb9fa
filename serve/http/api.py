"""Define the routes of the server and what they refuse: `create` makes a FastAPI application around a `Service`."""

# no `from __future__ import annotations` here: FastAPI reads the annotations of routes, which name local classes
import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Annotated, Any

from fastapi import Body, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.http import document, schemas
from serve.http.guard import Guard, respond
from serve.http.stream import answer_lines
from serve.replica.admission import Keys
from serve.replica.measured import expected
from serve.replica.model import DIGITS, Question, Wanted
from serve.replica.refusals import Refusal, not_ready, plain, unfit
from serve.replica.service import Service, shown
from serve.settings import ServeArgs
from xlt_ray.languages import codes
from xlt_ray.tracking import environment
from xlt_ray.translation.readings import ORIGINAL, Readings

NO_JSON = unfit("body", "is not JSON in UTF-8")
PAGE = {"page.js": "text/javascript", "page.css": "text/css"}
Deadline = Annotated[
    float | None, Header(alias="X-Deadline-Seconds", gt=0, le=3600, description="an answer later than this is no use")
]
MinConfidence = Annotated[
    float | None,
    Query(ge=0, le=1, description="no label where the confidence is lower; default: what the server is set to"),
]
TopK = Annotated[int, Query(ge=1, le=1000, description="labels to return for each text, the most probable first")]
AsRead = Annotated[bool, Query(description="return every text as it was read too")]


class Lines(Response):
    """A response that is written while the request is still read.

    Starlette's own StreamingResponse reads the request's messages as well, to see the client go, and so would eat them.
    """

    media_type = "application/x-ndjson"

    def __init__(self, lines: AsyncIterator[bytes], status_code: int = 200) -> None:  # FastAPI documents its default
        super().__init__(status_code=status_code)
        del self.headers["content-length"]
        self.lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for line in self.lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        except ClientDisconnect:
            return
        await send({"type": "http.response.body", "body": b""})


class ByTask:
    """ASGI middleware that leaves requests to an application of their own while a model of words answers."""

    def __init__(self, app: ASGIApp, of_words: Callable[[], ASGIApp], service: Callable[[], Service]) -> None:
        self.app, self.of_words, self.service = app, of_words, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = self.service().model if scope["type"] == "http" else None
        app = self.app if model is None or model.engine.words is None else self.of_words()
        await app(scope, receive, send)


def create(args: ServeArgs, service: Callable[[], Service], keys: Keys, metrics: Callable[[], str]) -> FastAPI:
    """Make the application; `service` returns the one of this replica, `metrics` the text for Prometheus.

    What answers is known once a model is loaded: until then, and with a model that labels whole texts, it is as if
    there were no other; with a model of words it has the routes, the document and the page of one.
    """
    app = _application(args, service, keys, metrics, False)
    of_words = functools.cache(lambda: _application(args, service, keys, metrics, True))
    app.add_middleware(ByTask, of_words=of_words, service=service)
    return app


def _application(
    args: ServeArgs, service: Callable[[], Service], keys: Keys, metrics: Callable[[], str], words: bool
) -> FastAPI:
    asked = "Tag the words of text" if words else "Classify text"
    app = FastAPI(
        title="xlt_ray",
        version=environment.version("xlt_ray") or "0",
        summary=f"{asked} in many languages, and know how far to trust the answer in each",
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(Guard, args=args, keys=keys, service=service)
    if args.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(args.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Deadline-Seconds"],
            expose_headers=["Retry-After"],
        )
    _refuse_in_one_form(app)
    (_add_tagging if words else _add_classifying)(app, args, service, keys)
    _add_describing(app, service, metrics, schemas.WordsModelResponse if words else schemas.ModelResponse)
    _add_pages(app)
    document.complete(app, bool(keys))
    return app


def _refuse_in_one_form(app: FastAPI) -> None:
    """Answer FastAPI's own errors in the form of a Refusal, which the Guard answers."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # not the input itself: it may be large, private, or a number that JSON cannot hold
        faults = error.errors()
        if faults[0]["type"] == "json_invalid":
            return respond(NO_JSON)
        place = ".".join(str(part) for part in faults[0]["loc"][1:]) or str(faults[0]["loc"][0])
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        return respond(unfit(place[:200], f"{faults[0]['msg']}{more}"))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        # FastAPI's status for a body that is no JSON, and for all else that stops its reading
        if error.status_code == 400:
            return respond(error.__cause__ if isinstance(error.__cause__, Refusal) else NO_JSON)
        fault = {"error": {"code": f"http_{error.status_code}", "message": plain(str(error.detail))}}
        return JSONResponse(fault, error.status_code, error.headers)


def check_codes(named: list[str | None] | None, texts: int) -> list[str | None] | None:
    """Read language codes of any usual kind; raise a Refusal of 422 for one that is not known."""
    if named is None:
        return None
    if len(named) != texts:
        raise unfit("languages", f"{len(named)} of them for {texts} texts; give one a text, null where to guess")
    read: list[str | None] = []
    for i, code in enumerate(named):
        found = None if code is None else codes.read(code)
        if code is not None and found is None:
            raise unfit(f"languages[{i}]", f"{code!a} is not a language code; `GET /v1/model` lists those measured")
        read.append(found)
    return read


def _add_classifying(app: FastAPI, args: ServeArgs, service: Callable[[], Service], keys: Keys) -> None:
    classify_form, feedback_form = schemas.requests(args.limits)

    @app.post("/v1/classify", response_model=schemas.ClassifyResponse, tags=["classify"], **document.CLASSIFYING)
    async def classify(request: Request, body: Annotated[classify_form, Body()], deadline: Deadline = None) -> Response:  # type: ignore[valid-type]
        """Label texts; each answer says how accurate the model was measured to be in the text's language."""
        asked: Any = body
        question = Question(asked.texts, asked.pairs, check_codes(asked.languages, len(asked.texts)))
        with keys.charged(request.scope["state"]["client"], len(asked.texts)):
            answer = await service().classify(question, deadline, asked.min_confidence)
        service().follow_up(answer)
        return JSONResponse({"model": answer.model.shown, "results": shown(answer, asked.top_k, asked.readings)})

    @app.post("/v1/classify/stream", tags=["classify"], response_class=Lines, **document.streaming("/v1/classify"))
    async def stream(
        request: Request, top_k: TopK = 1, min_confidence: MinConfidence = None, readings: AsRead = False
    ) -> Response:
        """Label lines of JSON, each a string or `{"text": ..., "pair"?: ..., "language"?: ..., "id"?: ...}`, in order.

        A line that cannot be answered gets a line with `error`; the others go on. Waits instead of refusing.
        """
        service().ready()
        spend = functools.partial(keys.spend, request.scope["state"]["client"])
        return Lines(answer_lines(service(), request.stream(), spend, Wanted(top_k, min_confidence, readings)))

    @app.post("/v1/feedback", response_model=schemas.FeedbackResponse, tags=["classify"], **document.CLASSIFYING)
    async def feedback(request: Request, body: Annotated[feedback_form, Body()]) -> Response:  # type: ignore[valid-type]
        """Score the model, and its challenger where there is one, on texts whose right label you know."""
        asked: Any = body
        if len(asked.labels) != len(asked.texts):
            raise unfit("labels", f"{len(asked.labels)} of them for {len(asked.texts)} texts; give one a text")
        question = Question(asked.texts, asked.pairs, check_codes(asked.languages, len(asked.texts)))
        with keys.charged(request.scope["state"]["client"], len(asked.texts)):
            models = await service().feedback(question, asked.labels)
        return JSONResponse({"models": models})


def _add_tagging(app: FastAPI, args: ServeArgs, service: Callable[[], Service], keys: Keys) -> None:
    tag_form = schemas.of_words(args.limits)

    @app.post("/v1/tag", response_model=schemas.TagResponse, tags=["tag"], **document.CLASSIFYING)
    async def tag(request: Request, body: Annotated[tag_form, Body()], deadline: Deadline = None) -> Response:  # type: ignore[valid-type]
        """Tag every word of texts, and find the spans that tags make; each answer says how good the model was measured
        to be in the text's language.
        """
        asked: Any = body
        question = Question(asked.texts, None, check_codes(asked.languages, len(asked.texts)))
        with keys.charged(request.scope["state"]["client"], len(asked.texts)):
            answer = await service().classify(question, deadline)
        # in a thread, because the answer to many long texts is megabytes, during which nobody else would get one
        return await asyncio.to_thread(lambda: JSONResponse({"model": answer.model.shown, "results": shown(answer, 1)}))

    @app.post("/v1/tag/stream", tags=["tag"], response_class=Lines, **document.streaming("/v1/tag"))
    async def stream(request: Request) -> Response:
        """Tag the words of lines of JSON, each a string or `{"text": ..., "language"?: ..., "id"?: ...}`, in order.

        A line that cannot be answered gets a line with `error`; the others go on. Waits instead of refusing.
        """
        service().ready()
        spend = functools.partial(keys.spend, request.scope["state"]["client"])
        return Lines(answer_lines(service(), request.stream(), spend, Wanted()))

    @app.post("/v1/classify", include_in_schema=False)
    @app.post("/v1/classify/stream", include_in_schema=False)
    @app.post("/v1/feedback", include_in_schema=False)
    async def other() -> Response:
        raise Refusal(404, "other_task", "a model of words answers here; ask it for tags with `POST /v1/tag`")


def _add_describing(
    app: FastAPI, service: Callable[[], Service], metrics: Callable[[], str], form: type[schemas.ModelResponse]
) -> None:
    @app.get("/v1/model", response_model=form, tags=["model"], **document.DESCRIBING)
    async def model() -> Response:
        """Return which model answers, what its labels are, and how good it was measured to be in each language."""
        return JSONResponse(describe(service()))

    @app.get("/healthz", tags=["health"], response_class=PlainTextResponse, **document.OPEN)
    async def healthz() -> Response:
        """Report that the process is alive."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz", tags=["health"], response_class=PlainTextResponse, **document.READY)
    async def readyz() -> Response:
        """Report whether a model is loaded and requests are taken."""
        service().ready()
        return PlainTextResponse("ready\n")

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse, **document.DESCRIBING)
    def exposition() -> Response:
        """Return this machine's counts in Prometheus' text format; they lag by up to ten seconds."""
        try:
            text = metrics()
        except (OSError, StopIteration, RuntimeError):
            raise not_ready("this machine's metrics cannot be read") from None
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def describe(service: Service) -> dict[str, Any]:
    """Collect what is known of the model that answers."""
    model = service.ready()
    artefact, words = model.artefact, model.engine.words
    quality, figure = ("expected_accuracy", "accuracy") if words is None else ("expected_quality", "value")
    table = [
        {
            "code": code,
            "name": codes.name(code),
            "right_to_left": codes.right_to_left(code),
            quality: expected(row),
            "seen_in_pretraining": row["seen"],
        }
        for code, row in artefact.languages.items()
    ]
    return {
        "model": model.shown,
        **({} if words is None else {"task": words.task.name, "types": list(words.task.types)}),
        "labels": list(artefact.labels),
        "pairs": artefact.pairs,
        "max_length": artefact.max_length,
        "min_confidence": service.args.min_confidence,
        "readings": describe_readings(model.engine.readings),
        "languages": sorted(table, key=lambda row: -(row[quality] or {}).get(figure, 0)),
        "provenance": dict(artefact.provenance),
        "vocabulary": dict(artefact.vocabulary),
        "checks": dict(artefact.checks),
        "limits": service.args.limits.model_dump(),
        "texts_logged": service.args.log_texts,
        "replica": service.replica,
        "loading": service.loading,
        "problem": plain(service.problem),
        "challenger": service.challenge.tally() if service.challenge else None,
    }


def describe_readings(readings: Readings | None) -> dict[str, Any] | None:
    """Describe how texts are read in the languages that have a lexicon; None where all are read as they stand."""
    if readings is None:
        return None
    weights = [weight / sum(readings.weights) for weight in readings.weights]
    names = [ORIGINAL if one is None else one.name for one in readings.translators]
    return {
        "into": readings.into,
        "into_name": codes.name(readings.into),
        "each": [{"name": name, "weight": round(one, DIGITS)} for name, one in zip(names, weights, strict=True)],
        "languages": len(readings.languages),
    }


def _add_pages(app: FastAPI) -> None:
    folder = resources.files("serve") / "page"
    files = {file: (folder / file).read_text(encoding="utf-8") for file in ("page.html", *PAGE)}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(files["page.html"])

    for file, kind in PAGE.items():

        def part(file: str = file, kind: str = kind) -> Response:
            return Response(files[file], media_type=kind, headers={"Cache-Control": "max-age=300"})

        app.add_api_route(f"/{file}", part, include_in_schema=False)

    assets = resources.files("fastapi_offline") / "static"
    app.mount("/docs/assets", StaticFiles(directory=str(assets)))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="xlt_ray: the API",
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="data:,",
        )
