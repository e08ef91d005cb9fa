"""Classify texts and operate a server: the verbs predict, serve, rollout, rollback, challenge and key."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from xlt_ray.cli.runs import UNSENT

Port = Annotated[int, typer.Option(help="port on 127.0.0.1", min=1, max=65535)]
Address = Annotated[
    str | None,
    typer.Option(help="dashboard of a cluster, such as http://127.0.0.1:8265; default: the server on --port"),
]
Url = Annotated[str | None, typer.Option(help="where a cluster's server answers; default: http://127.0.0.1:PORT")]
Key = Annotated[str | None, typer.Option(envvar="XLT_API_KEY", help="API key, where the server asks for one")]
Follow = Annotated[
    float | None, typer.Option(min=1, help="look at the alias every so many seconds, and roll out when it has moved")
]


@contextlib.contextmanager
def _with_token() -> Iterator[None]:
    """Let a Ray that a verb starts ask for a token."""
    # what Ray decides when it starts a cluster, but not when it joins one; read once, when ray is imported
    before = os.environ.get("RAY_AUTH_MODE")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        yield
    finally:
        if before is None:  # whatever this process does next is not serving
            del os.environ["RAY_AUTH_MODE"]


def predict(
    model: Annotated[str, typer.Argument(help="folder of a run, bundle or artefact, or models:/NAME@champion")],
    file: Annotated[str, typer.Argument(help="one text a line; - for standard input")],
    top: Annotated[int, typer.Option(min=1, help="labels to return for each text")] = 1,
    jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl",
            help='lines are JSON: strings, or {"text", "pair", "language", "id"}; for words {"text", "words", "id"}',
        ),
    ] = False,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="return no label where the confidence is lower")
    ] = 0.0,
    readings: Annotated[bool, typer.Option("--readings", help="return every text as it was read too")] = False,
    uri: Annotated[str | None, typer.Option(help="MLflow server of a registered model")] = None,
) -> None:
    """Classify the lines of a file without a server; a JSON object a line, the same that a server answers.

    A model of words tags those of every line.
    """
    from serve import offline
    from serve.replica.model import Wanted

    lines = offline.lines_of(file, jsonl)
    opened: Any = offline.open_model(model, uri)
    if opened.engine.words is not None:
        from xlt_ray.errors import InputError
        from xlt_ray.inference import tagging

        unheard = {"--top": top != 1, "--min-confidence": min_confidence > 0, "--readings": readings}
        if given := [name for name, there in unheard.items() if there]:
            raise InputError(f"{given[0]}: is for labels of whole texts, and {model} is a model of words; leave it out")
        _told(tagging.tag_lines(opened.engine.bundle, lines, jsonl, sys.stdout))
        return
    if not jsonl:
        offline.refuse_single_texts(opened, file)
    faults = offline.classify_lines(opened, lines, jsonl, sys.stdout, Wanted(top, min_confidence, readings))
    _told(faults)


def _told(faults: int) -> None:
    if faults:
        typer.echo(f"{faults} lines could not be answered; each says why", err=True)
        raise typer.Exit(1)


@_with_token()
def serve(
    model: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/3, or the folder of a run")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as limits.deadline_s=2")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with settings; see `xlt catalogue`")] = None,
    port: Port = 8000,
    follow: Follow = None,
    haproxy: Annotated[bool, typer.Option(help="HAProxy in front, or Ray's own slower proxy")] = True,
) -> None:
    """Serve a model on 127.0.0.1: a page to try it, and an API. Ctrl-C answers what is in hand and stops."""
    from serve import settings
    from serve.control import control

    args = settings.load(config, model, overrides or ())
    began = time.monotonic()

    def log(text: str) -> None:
        typer.echo(f"[{time.monotonic() - began:5.1f} s] {text}")

    with control.terminated_like_ctrl_c(), control.started(args, port, log, haproxy) as server:
        shown = server.ask("/v1/model") if not args.api_keys else None
        answering = f"{shown['model']['name']} ({shown['model']['precision']})" if shown else args.model
        log(f"{answering} answers at {server.url}; the API is described at {server.url}/docs")
        with contextlib.suppress(KeyboardInterrupt):
            control.follow(server, follow, log) if follow else threading.Event().wait()


@_with_token()
def rollout(
    model: Annotated[
        str | None, typer.Argument(help="what to serve from now on; default: what the served alias stands for now")
    ] = None,
    port: Port = 8000,
    address: Address = None,
    url: Url = None,
    key: Key = None,
    challenger: Annotated[str | None, typer.Option(help="a second model, to be compared with the first")] = None,
    share: Annotated[float, typer.Option(min=0.0001, max=1, help="of requests that the challenger gets")] = 0.1,
    split: Annotated[
        bool, typer.Option("--split/--shadow", help="the challenger answers its share, or only classifies it too")
    ] = False,
    follow: Follow = None,
) -> None:
    """Change the model of a running server without dropping a request; one that does not load changes nothing."""
    from serve.control import control
    from serve.replica.challenge import ChallengeArgs

    mode: Any = "split" if split else "shadow"
    second = ChallengeArgs(model=challenger, share=share, mode=mode) if challenger else None
    with control.found(port, address, url, key) as server:
        _print_rollout(control.roll_out(server, model, second))
        if follow:
            with contextlib.suppress(KeyboardInterrupt):
                control.follow(server, follow, typer.echo)


@_with_token()
def rollback(port: Port = 8000, address: Address = None, url: Url = None, key: Key = None) -> None:
    """Go back to the model that answered before; where an alias is served, the alias goes back too."""
    from serve.control import control

    with control.found(port, address, url, key) as server:
        if moved := control.alias_back(server):
            typer.echo(moved)
            _print_rollout(control.roll_out(server))
        else:
            _print_rollout(control.roll_back(server))


@_with_token()
def challenge(port: Port = 8000, address: Address = None, url: Url = None, key: Key = None) -> None:
    """Compare champion and challenger so far, and record it in MLflow; exit code 3 while that has not all of it."""
    from serve.control import control, scoreboard

    with control.found(port, address, url, key) as server:
        board = scoreboard.collect(server)
    Console(highlight=False).print(scoreboard.table(board))
    where, left = scoreboard.record(board)
    typer.echo(where)
    if left:
        raise typer.Exit(UNSENT)


def _print_rollout(done: Any) -> None:
    what = f"{done.before} -> {done.after}" if done.before != done.after else f"{done.after} stays"
    beside = f", challenged by {done.challenger}" if done.challenger else ""
    typer.echo(f"{what}{beside}: {done.replicas} replica{'s' * (done.replicas != 1)}, {done.seconds:.1f} s")


def key(
    name: Annotated[str, typer.Argument(help="who will use it")],
    texts_per_minute: Annotated[float | None, typer.Option(min=0.001, help="default: no limit")] = None,
) -> None:
    """Make an API key: the key on standard error, once; what a server's `api_keys` needs on standard output."""
    import hashlib
    import json
    import secrets

    secret = f"xlt_{secrets.token_urlsafe(32)}"
    entry = {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest(), "texts_per_minute": texts_per_minute}
    sys.stderr.write(f"key (shown once): {secret}\n")
    typer.echo(json.dumps({k: v for k, v in entry.items() if v is not None}))
