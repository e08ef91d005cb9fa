"""Read the settings of a server, the `args` of `serve.app:build`: from a YAML file, Serve's own, or `xlt serve`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from xlt_ray import config, durable
from xlt_ray.config.keys import explain
from xlt_ray.config.sections import Section
from xlt_ray.errors import InputError
from xlt_ray.languages.codes import read
from xlt_ray.tracking.tracking_uri import absolute

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Limits(Section):
    """What one request may ask for, and how much may wait."""

    texts: int = Field(128, ge=1, le=4096, description="texts a request")
    characters: int = Field(
        10_000, ge=1, description="characters a text; the model reads its first `max_length` tokens"
    )
    body_bytes: int = Field(1_000_000, ge=1024, description="bytes of a request's body")
    waiting_texts: int = Field(1024, ge=1, description="texts that may wait in one replica; more are answered 503")
    deadline_s: float = Field(10.0, gt=0, description="seconds after which an answer is of no use to anyone")
    line_bytes: int = Field(100_000, ge=1024, description="bytes of a line of a stream")


class ApiKey(Section):
    """One client: the name it is counted under, the SHA-256 of its key, and how much it may ask for."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="`xlt key NAME` makes a key and prints this")
    texts_per_minute: float | None = Field(None, gt=0, description="over all replicas; default: no limit")


class Scaling(Section):
    """How many replicas answer."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1, description="more than min_replicas: Serve adds replicas while requests wait")
    target_ongoing_requests: float = Field(8, gt=0, description="requests a replica should have in hand")
    cpus: float = Field(1, gt=0, description="CPUs of a replica, and its threads of arithmetic")
    gpus: float = Field(0, ge=0, description="of a replica; with any, torch answers in bfloat16")


class ServeArgs(Section):
    """Everything `serve.app:build` takes."""

    model: str = Field(min_length=1, description="models:/NAME@champion, models:/NAME/3, or the folder of a run")
    tracking_uri: str = Field("sqlite:///xlt.db", description="the MLflow server whose registry `model` is in")
    precision: Literal["auto", "float32", "int8"] = Field("auto", description="auto: int8 where it passed the check")
    vocabulary: Literal["exact", "trimmed"] = Field(
        "exact", description="exact keeps every piece of the tokenizer; trimmed those in the scripts of `languages`"
    )
    languages: tuple[str, ...] = Field((), description="what a trimmed vocabulary is for; default: those measured")
    tokens_per_batch: int | None = Field(
        None, ge=128, description="tokens of one batch; default: what suits the device"
    )
    min_confidence: float = Field(
        0.0, ge=0, le=1, description="an answer less confident than this gives no label; a request may ask for another"
    )
    identify: bool = Field(True, description="guess the language of texts whose language is not given")
    limits: Limits = Limits()
    scaling: Scaling = Scaling()
    api_keys: tuple[ApiKey, ...] = Field((), description="with any here, a request without one of them is refused")
    cors_origins: tuple[str, ...] = Field((), description="origins of web pages that may call; default: none")
    allowed_hosts: tuple[str, ...] = Field(
        LOOPBACK, description="names by which the server may be called, against DNS rebinding; ['*'] for any"
    )
    log_texts: bool = Field(False, description="write texts and answers to Serve's log; never otherwise")
    cache_dir: str | None = Field(
        None,
        description="where models are kept on each machine; default: xlt_ray/serving in its cache folder",
    )

    @field_validator("api_keys")
    @classmethod
    def _distinct(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in keys]
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same {what}; give each client its own")
        return keys

    @field_validator("languages")
    @classmethod
    def _known(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        for code in codes:
            if read(code) is None:
                raise ValueError(f"{code!r} is not a language code; `xlt languages` lists them")
        return tuple(str(read(code)) for code in codes)

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"https?://[^/\s*]+", origin):
                raise ValueError(f"{origin!r} is not an origin such as https://example.org; no path, no *")
        return origins

    @property
    def cache(self) -> Path:
        """Where models are kept on this machine."""
        return Path(self.cache_dir).expanduser() if self.cache_dir else durable.cache_folder("serving")

    @property
    def device(self) -> str:
        """What a replica computes on."""
        return "cuda" if self.scaling.gpus else "cpu"


def parse(data: Mapping[str, Any], place: str = "args") -> ServeArgs:
    """Make settings of plain data; raise InputError listing every fault at once."""
    try:
        args = ServeArgs.model_validate(dict(data))
    except ValidationError as error:
        faults = "\n".join("  " + explain(fault, ServeArgs) for fault in error.errors())
        raise InputError(f"{place}:\n{faults}") from None
    low, high = args.scaling.min_replicas, args.scaling.max_replicas
    if high < low:
        raise InputError(f"scaling.max_replicas: {high} is less than min_replicas, {low}; raise it")
    # replicas have another working directory
    return args.model_copy(update={"tracking_uri": absolute(args.tracking_uri, "tracking_uri")})


def load(file: Path | None, model: str, overrides: Sequence[str] = ()) -> ServeArgs:
    """Read settings from a YAML file, if any, and apply overrides such as `limits.deadline_s=2`; raise InputError."""
    place = "options" if file is None else str(file)
    data = config.plain({}, overrides, place, ServeArgs) if file is None else config.read(file, overrides, ServeArgs)
    if "scaling" not in data:
        # two, so that one can die unnoticed, and each with half of the machine
        cores = len(os.sched_getaffinity(0))
        replicas = min(2, cores)
        data["scaling"] = {"min_replicas": replicas, "max_replicas": replicas, "cpus": cores / replicas}
    return parse(data | {"model": model}, place)


def from_builder(args: Mapping[str, Any]) -> ServeArgs:
    """Read what Serve hands to a builder: nested data from a configuration, `limits.deadline_s=2` from `serve run`."""
    dotted = [f"{key}={value}" for key, value in args.items() if "." in key]
    whole = {key: value for key, value in args.items() if "." not in key}
    return parse(config.plain(whole, dotted, "args", ServeArgs))
