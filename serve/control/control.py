"""Start a server, change the model under load, and report how it went: the verbs serve, rollout and rollback.

A server is changed through Ray's REST interface, by a new `user_config`, and asked over HTTP what became of it. So the
same code changes the server that `xlt serve` started and one on a cluster.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve.app import NAME, Choice, resolve
from serve.control.links import Driver, Link, Rest, on_loopback
from serve.loopback import MARK, install
from serve.replica.challenge import ChallengeArgs
from serve.settings import ServeArgs, parse
from xlt_ray import durable
from xlt_ray.config.masking import masked, public
from xlt_ray.errors import InputError, ServingError
from xlt_ray.registry import fetch

APP = "xlt"
Log = Callable[[str], None]  # receives a line for the user
START_S = 600.0  # until a model must be up: a bundle that was never exported takes a minute on a slow machine
CHANGE_S = 300.0


@dataclass(frozen=True)
class Server:
    """Where a server is: `url` answers requests, with an API `key` where it asks for one; `link` reaches its Ray."""

    url: str
    link: Link
    key: str | None = field(default=None, repr=False)

    def ask(self, path: str) -> dict[str, Any]:
        """GET a path and read JSON; raises OSError where there is no good answer."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                found: dict[str, Any] = json.loads(response.read())
                return found
        except urllib.error.HTTPError as error:
            if error.code == 401:
                raise InputError("--key: this server wants an API key; give one, or set XLT_API_KEY") from None
            raise

    def application(self) -> dict[str, Any]:
        """Return what Ray knows of the application; raises InputError where it is not deployed there."""
        found = self.link.applications().get(APP)
        if found is None:
            raise InputError(f"--address: no application {APP!r} there; start one with `xlt serve` or `serve deploy`")
        return found

    def replicas(self) -> set[str]:
        """List the replicas that run."""
        replicas = self.application()["deployments"][NAME]["replicas"]
        return {one["replica_id"] for one in replicas if one["state"] == "RUNNING"}


def state_file(port: int) -> Path:
    """Return the file in which the server on a port of this machine leaves its Ray's address for the other verbs."""
    return durable.cache_folder("servers", f"{port}.json")


@contextlib.contextmanager
def found(port: int, address: str | None, url: str | None, key: str | None) -> Iterator[Server]:
    """Reach a server: by the address of a cluster's dashboard, or the one `xlt serve` started here on a port."""
    url = (url or f"http://127.0.0.1:{port}").rstrip("/")
    if address:
        yield Server(url, Rest(address), key)
        return
    try:
        ray_address = json.loads(state_file(port).read_text(encoding="utf-8"))["ray"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"--port: no server was started here on port {port}; give its port, or --address of a cluster's dashboard"
        ) from None
    with on_loopback(ray_address):
        yield Server(url, Driver(), key)


@contextlib.contextmanager
def started(settings: ServeArgs, port: int, log: Log, haproxy: bool = True) -> Iterator[Server]:
    """Start Ray and Serve on the loopback interface of this machine, put a model behind HTTP, and stop all at the end.

    Raises InputError where the port is taken and ServingError where the model does not come up.
    """
    _check_port(port)
    choice = Choice(model=resolve(settings))
    if not settings.model.startswith("models:"):
        fetch.bundle_in(Path(choice.model))  # here is where it is loaded, so what is wrong with it shows now
    with durable.scratch() as scratch:
        environment = install(scratch) if haproxy else {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
        for name, value in (environment | {MARK: "1"}).items():
            os.environ.setdefault(name, value)
        if masked(settings.tracking_uri) != settings.tracking_uri:
            os.environ["MLFLOW_TRACKING_URI"] = settings.tracking_uri
        log("starting Ray")
        with on_loopback("local") as ray_address:
            from ray import serve

            from xlt_ray.training import cluster

            logging.getLogger("ray.serve").setLevel(logging.WARNING)
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            server = Server(f"http://127.0.0.1:{port}", Driver())
            log(f"loading {choice.model}")
            deploy(server, settings, choice)
            file = state_file(port)
            durable.write(file, json.dumps({"ray": ray_address, "pid": os.getpid()}))
            try:
                yield server
            finally:
                file.unlink(missing_ok=True)
                if not cluster.died():
                    log("stopping: requests in hand are answered first")
                    serve.delete(APP)  # waits for requests under way; shutdown alone does not
                    serve.shutdown()


def _check_port(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise InputError(f"--port: {port} cannot be listened on ({error.strerror}); give another") from None


def deploy(server: Server, settings: ServeArgs, choice: Choice) -> None:
    """Deploy the application, and wait until it answers; raises ServingError with Ray's reason where it does not."""
    application = {
        "name": APP,
        "route_prefix": "/",
        "import_path": "serve.app:build",
        "args": public(settings.model_dump(mode="json")),  # Ray shows them; the secret is in our environment
        "deployments": [{"name": NAME, "user_config": choice.model_dump(mode="json")}],
    }
    server.link.deploy({"logging_config": {"enable_access_log": False}, "applications": [application]})
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        found = server.link.applications().get(APP, {})
        if found.get("status") == "RUNNING":
            with contextlib.suppress(OSError):
                urllib.request.urlopen(server.url + "/readyz", timeout=5).close()
                return
        if found.get("status") in ("DEPLOY_FAILED", "UNHEALTHY"):
            reasons = [one.get("message", "") for one in (found, *found["deployments"].values())]
            raise ServingError(_reason("\n".join(reasons)))
        time.sleep(0.3)
    raise ServingError(f"the model did not come up within {START_S:g} s")


def _reason(message: str) -> str:
    """Return the message of the error in Ray's message, which holds a traceback."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error:" in line or "error: " in line]
    return re.sub(r"^[\w.]*(Error|Exception): ", "", (errors or lines or ["no reason was given"])[-1])[-1500:]


@dataclass(frozen=True)
class Rollout:
    """How a change went: from which model to which, in how long, and on how many replicas."""

    before: str
    after: str
    seconds: float
    replicas: int
    challenger: str | None = None


def roll_out(server: Server, spec: str | None = None, challenger: ChallengeArgs | None = None) -> Rollout:
    """Change the model, to `spec` or to what the served alias stands for now, and wait until every replica has it.

    `challenger` begins a challenge; without one, a challenge that is on ends. Raises ServingError, naming the reason,
    where the new model could not be loaded; the old one then goes on answering, and the choice is put back.
    """
    config, settings, held = _deployed(server)
    target = resolve(settings, spec)
    if challenger is not None:
        challenger = challenger.model_copy(update={"model": resolve(settings, challenger.model)})
    previous = held.previous if target == held.model else held.model
    return _apply(server, config, held, Choice(model=target, previous=previous, challenger=challenger))


def settings_of(server: Server) -> ServeArgs:
    """Return the settings a server was deployed with."""
    return _deployed(server)[1]


def alias_back(server: Server) -> str:
    """Move the alias that a server serves back to its version before; return a line about it, "" without an alias."""
    settings = settings_of(server)
    if "@" not in settings.model:
        return ""
    from xlt_ray.registry import promotion

    name, _, alias = settings.model.removeprefix("models:/").partition("@")
    return promotion.rollback(name, alias, settings.tracking_uri)


def roll_back(server: Server) -> Rollout:
    """Go back to the model that answered before the last rollout; raises InputError where there was none."""
    config, _, held = _deployed(server)
    if held.previous is None:
        raise InputError(f"rollback: {held.model} is the first model of this server; there is none before it")
    return _apply(server, config, held, Choice(model=held.previous, previous=held.model))


def _deployed(server: Server) -> tuple[dict[str, Any], ServeArgs, Choice]:
    application = server.application()
    config = application["deployed_app_config"]
    mine = next((one for one in config.get("deployments", ()) if one["name"] == NAME), None)
    settings = parse(config["args"])
    if mine and mine.get("user_config"):
        return config, settings, Choice.model_validate(mine["user_config"])
    running = application["deployments"][NAME]["deployment_config"].get("user_config")
    return config, settings, Choice.model_validate(running or {"model": resolve(settings)})


def _apply(server: Server, config: dict[str, Any], before: Choice, after: Choice) -> Rollout:
    began = time.monotonic()
    _put(server, config, after)
    try:
        replicas = _wait_changed(server, after)
    except ServingError:
        _put(server, config, before)  # so that a replica started later does not try the broken one
        raise
    second = after.challenger.model if after.challenger else None
    return Rollout(before.model, after.model, time.monotonic() - began, replicas, second)


def _put(server: Server, config: dict[str, Any], choice: Choice) -> None:
    others = [one for one in config.get("deployments", ()) if one["name"] != NAME]
    mine = next((one for one in config.get("deployments", ()) if one["name"] == NAME), {"name": NAME})
    changed = config | {"deployments": [*others, mine | {"user_config": choice.model_dump(mode="json")}]}
    there = server.link.applications()
    rest = [one["deployed_app_config"] for name, one in there.items() if name != APP]
    server.link.deploy({"applications": [*rest, changed]})


def _wait_changed(server: Server, choice: Choice) -> int:
    """Ask until every replica that Ray lists answers with the new model; raises ServingError with what one reports."""
    end, changed = time.monotonic() + CHANGE_S, set[str]()
    while time.monotonic() < end:
        running = server.replicas()
        for _ in range(2 * len(running) + 1):  # whichever replica the request happens to reach
            with contextlib.suppress(OSError, ValueError):
                shown = server.ask("/v1/model")
                if shown["problem"].startswith(choice.model):  # not what is left of a choice before
                    raise ServingError(f"{shown['problem']}; {shown['model']['name']} goes on answering")
                wanted = choice.challenger.model if choice.challenger else None
                second = (shown["challenger"] or {}).get("challenger")
                if shown["model"]["name"] == choice.model and second == wanted:
                    changed.add(shown["replica"])
        if running and running <= changed:
            return len(running)
        time.sleep(0.2)
    raise ServingError(f"not every replica had {choice.model} within {CHANGE_S:g} s; see `serve status`")


def tallies(server: Server) -> list[dict[str, Any]]:
    """Collect what each replica counted of a challenge; raises InputError where there is none."""
    counted: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + 30
    while time.monotonic() < end:
        replicas = server.replicas()
        shown = server.ask("/v1/model")
        if shown["challenger"] is None:
            raise InputError("challenge: no challenger at this server; begin one with `xlt rollout --challenger MODEL`")
        counted[shown["replica"]] = shown["challenger"] | {"champion": shown["model"]["name"]}
        if replicas <= set(counted):
            return list(counted.values())
    raise ServingError("not every replica answered within 30 s")


def follow(server: Server, every: float, log: Log) -> None:
    """Watch the alias that a server serves, and roll out whenever it stands for another version; until interrupted."""
    failed = ""
    while True:
        time.sleep(every)
        try:
            _, settings, held = _deployed(server)
            wanted = resolve(settings)
            if wanted in (held.model, failed):
                continue
            done = roll_out(server)
            log(f"{done.before} -> {done.after} on {done.replicas} replicas in {done.seconds:.1f} s")
            failed = ""
        except ServingError as error:
            failed = wanted  # once is enough; the next version is tried again
            log(f"error: {error}")
        except (InputError, OSError) as error:
            log(f"the alias could not be looked up, tried again in {every:g} s: {error}")


@contextlib.contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """Make SIGTERM end what runs within as Ctrl-C does, so that requests under way are answered."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
