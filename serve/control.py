"""Start a server, change the model under load, and tell how it went: what the verbs serve, rollout and rollback do.

A server is changed through Ray's REST interface, by a new `user_config`, and asked over HTTP what became of it. So the
same code changes the server that `xlt serve` started and one on a cluster.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve.app import NAME, Choice, resolve
from serve.challenge import ChallengeArgs
from serve.loopback import free_ports, install
from serve.settings import ServeArgs, parse
from xlt_ray.config import InputError

APP = "xlt"
Tell = Callable[[str], None]
START_S = 600.0  # until a model must be up: a bundle that was never exported takes a minute on a slow machine
CHANGE_S = 300.0


class ServingError(RuntimeError):
    """A server does not do what it was told; the message says what is the case now."""


@dataclass(frozen=True)
class Server:
    """Where a server is: `url` answers requests, `api` is the dashboard's address of its Ray cluster."""

    url: str
    api: str
    pid: int = 0

    def ask(self, path: str, key: str | None = None, timeout: float = 10) -> dict[str, Any]:
        """GET a path and read JSON; raises OSError where there is no good answer."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(self.url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            found: dict[str, Any] = json.loads(response.read())
            return found

    def client(self) -> Any:
        """Give Ray's client of the REST interface; raises InputError where nobody answers."""
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        try:
            return ServeSubmissionClient(self.api)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"--address: {self.api} does not answer as a Ray dashboard ({error})") from None

    def application(self) -> dict[str, Any]:
        """Give what Ray says of the application; raises InputError where it is not deployed there."""
        found = self.client().get_serve_details()["applications"].get(APP)
        if found is None:
            raise InputError(f"--address: no application {APP!r} at {self.api}; start one with `xlt serve`")
        application: dict[str, Any] = found
        return application


def state_file(port: int) -> Path:
    """Say where the server on a port of this machine leaves its address for the other verbs."""
    return Path("~/.cache/xlt_ray/servers").expanduser() / f"{port}.json"


def find(port: int, address: str | None, url: str | None) -> Server:
    """Find a server: by the address of a cluster's dashboard, or the one `xlt serve` started here on a port."""
    if address:
        return Server((url or f"http://127.0.0.1:{port}").rstrip("/"), address.rstrip("/"))
    try:
        return Server(**json.loads(state_file(port).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise InputError(
            f"--port: no server was started here on port {port}; give its port, or --address of a cluster's dashboard"
        ) from None


@contextlib.contextmanager
def started(settings: ServeArgs, port: int, tell: Tell, haproxy: bool = True) -> Iterator[Server]:
    """Start Ray and Serve on the loopback interface of this machine, put a model behind HTTP, and stop all at the end.

    Raises InputError where the port is taken and ServingError where the model does not come up.
    """
    import ray

    _check_port(port)
    choice = Choice(model=resolve(settings))
    with tempfile.TemporaryDirectory(prefix="xlt-serve-") as scratch:
        environment = install(Path(scratch)) if haproxy else {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
        os.environ.update({name: value for name, value in environment.items() if name not in os.environ})
        tell("starting Ray")
        dashboard = _init_on_loopback()
        server = Server(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", os.getpid())
        try:
            tell(f"loading {choice.model}")
            deploy(server, settings, choice, {"host": "127.0.0.1", "port": port})
            file = state_file(port)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(asdict(server)), encoding="utf-8")
            try:
                yield server
            finally:
                file.unlink(missing_ok=True)
                tell("stopping: requests in hand are answered first")
                with contextlib.suppress(Exception):
                    server.client().delete_applications()
        finally:
            ray.shutdown()


def _check_port(port: int) -> None:
    import socket

    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise InputError(f"--port: {port} cannot be listened on ({error.strerror}); give another") from None


def _init_on_loopback() -> int:
    """Start Ray so that none of its own servers listens beyond this machine; gives the dashboard's port."""
    import ray
    from ray._private import services

    (dashboard,) = free_ports(1)
    # Ray would replace 127.0.0.1 by the machine's address, and then listen on every interface
    usual, services.resolve_ip_for_localhost = services.resolve_ip_for_localhost, lambda host: host
    try:
        ray.init(
            address="local",
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=dashboard,
            _node_ip_address="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    finally:
        services.resolve_ip_for_localhost = usual
    return dashboard


def deploy(server: Server, settings: ServeArgs, choice: Choice, http: Mapping[str, Any]) -> None:
    """Deploy the application, and wait until it answers; raises ServingError with Ray's reason where it does not."""
    application = {
        "name": APP,
        "route_prefix": "/",
        "import_path": "serve.app:build",
        "args": settings.model_dump(mode="json"),
        "deployments": [{"name": NAME, "user_config": choice.model_dump(mode="json")}],
    }
    quiet = {"enable_access_log": False}
    server.client().deploy_applications(
        {"http_options": dict(http), "logging_config": quiet, "applications": [application]}
    )
    _wait_running(server, START_S)


def _wait_running(server: Server, limit: float) -> None:
    end, client = time.monotonic() + limit, server.client()
    while time.monotonic() < end:
        found = client.get_serve_details()["applications"].get(APP, {})
        if found.get("status") == "RUNNING":
            with contextlib.suppress(OSError):
                urllib.request.urlopen(server.url + "/readyz", timeout=5).close()
                return
        if found.get("status") in ("DEPLOY_FAILED", "UNHEALTHY"):
            reasons = [found.get("message", "")] + [one.get("message", "") for one in found["deployments"].values()]
            raise ServingError(_reason("\n".join(reasons)))
        time.sleep(0.3)
    raise ServingError(f"the model did not come up within {limit:g} s")


def _reason(message: str) -> str:
    """Pick out of Ray's message, which holds a traceback, the line that says what went wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = [line for line in lines if "Error:" in line or "error: " in line]
    return (told or lines or ["no reason was given"])[-1][-1500:]


@dataclass(frozen=True)
class Rollout:
    """How a change went: from which model to which, and what each replica says."""

    before: str
    after: str
    seconds: float
    replicas: int
    challenger: str | None = None


def roll_out(
    server: Server, spec: str | None = None, challenger: ChallengeArgs | None = None, key: str | None = None
) -> Rollout:
    """Change the model, to `spec` or to what the served alias stands for now, and wait until every replica has it.

    `challenger` begins a challenge; without one, a challenge that is on ends. Raises ServingError, naming the reason,
    where the new model could not be loaded; the old one then goes on answering, and the choice is put back.
    """
    config, settings, held = _deployed(server)
    target = resolve(settings.model_copy(update={"model": spec or settings.model}))
    if challenger is not None:
        challenger = challenger.model_copy(
            update={"model": resolve(settings.model_copy(update={"model": challenger.model}))}
        )
    previous = held.previous if target == held.model else held.model
    return _apply(server, config, held, Choice(model=target, previous=previous, challenger=challenger), key)


def settings_of(server: Server) -> ServeArgs:
    """Give the settings a server was deployed with."""
    return _deployed(server)[1]


def alias_back(server: Server) -> str:
    """Where a server serves an alias, move the alias back to the version it stood for before; says so, else ''."""
    settings = settings_of(server)
    if "@" not in settings.model:
        return ""
    from xlt_ray import promotion

    name, _, alias = settings.model.removeprefix("models:/").partition("@")
    return promotion.rollback(name, alias, settings.tracking_uri)


def roll_back(server: Server, key: str | None = None) -> Rollout:
    """Go back to the model that answered before the last rollout; raises InputError where there was none."""
    config, _, held = _deployed(server)
    if held.previous is None:
        raise InputError(f"rollback: {held.model} is the first model of this server; there is none before it")
    return _apply(server, config, held, Choice(model=held.previous, previous=held.model), key)


def _deployed(server: Server) -> tuple[dict[str, Any], ServeArgs, Choice]:
    application = server.application()
    config = application["deployed_app_config"]
    mine = next((one for one in config.get("deployments", ()) if one["name"] == NAME), None)
    settings = parse(config["args"])
    if mine and mine.get("user_config"):
        return config, settings, Choice.model_validate(mine["user_config"])
    running = application["deployments"][NAME]["deployment_config"].get("user_config")
    return config, settings, Choice.model_validate(running or {"model": resolve(settings)})


def _apply(server: Server, config: dict[str, Any], before: Choice, after: Choice, key: str | None) -> Rollout:
    began = time.monotonic()
    _put(server, config, after)
    try:
        replicas = _wait_changed(server, after, key)
    except ServingError:
        _put(server, config, before)  # so that a replica started later does not try the broken one
        raise
    second = after.challenger.model if after.challenger else None
    return Rollout(before.model, after.model, time.monotonic() - began, replicas, second)


def _put(server: Server, config: dict[str, Any], choice: Choice) -> None:
    client = server.client()
    others = [one for one in config.get("deployments", ()) if one["name"] != NAME]
    mine = next((one for one in config.get("deployments", ()) if one["name"] == NAME), {"name": NAME})
    changed = config | {"deployments": [*others, mine | {"user_config": choice.model_dump(mode="json")}]}
    there = client.get_serve_details()["applications"]
    rest = [one["deployed_app_config"] for name, one in there.items() if name != APP]
    client.deploy_applications({"applications": [*rest, changed]})


def _wait_changed(server: Server, choice: Choice, key: str | None) -> int:
    """Ask until every replica that Ray lists answers with the new model; raises ServingError with what one says."""
    end, changed = time.monotonic() + CHANGE_S, set[str]()
    while time.monotonic() < end:
        running = {
            one["replica_id"]
            for one in server.application()["deployments"][NAME]["replicas"]
            if one["state"] == "RUNNING"
        }
        for _ in range(2 * len(running) + 1):  # whichever replica the request happens to reach
            with contextlib.suppress(OSError, ValueError):
                found = server.ask("/v1/model", key)
                if found["problem"]:
                    raise ServingError(f"{found['problem']}; {found['model']['name']} goes on answering")
                wanted = choice.challenger.model if choice.challenger else None
                second = (found["challenger"] or {}).get("challenger")
                if found["model"]["name"] == choice.model and second == wanted:
                    changed.add(found["replica"])
        if running and running <= changed:
            return len(running)
        time.sleep(0.2)
    raise ServingError(f"not every replica had {choice.model} within {CHANGE_S:g} s; see `serve status`")


def tallies(server: Server, key: str | None = None) -> list[dict[str, Any]]:
    """Collect what each replica counted of a challenge; raises InputError where there is none."""
    found: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + 30
    while time.monotonic() < end:
        replicas = {one["replica_id"] for one in server.application()["deployments"][NAME]["replicas"]}
        told = server.ask("/v1/model", key)
        if told["challenger"] is None:
            raise InputError("challenge: no challenger at this server; begin one with `xlt rollout --challenger MODEL`")
        found[told["replica"]] = told["challenger"] | {"champion": told["model"]["name"]}
        if replicas <= set(found):
            return list(found.values())
    raise ServingError("not every replica answered within 30 s")


def follow(server: Server, every: float, tell: Tell, key: str | None = None) -> None:
    """Watch the alias that a server serves, and roll out whenever it stands for another version; until interrupted."""
    failed = ""
    while True:
        time.sleep(every)
        try:
            _, settings, held = _deployed(server)
            wanted = resolve(settings)
            if wanted in (held.model, failed):
                continue
            done = roll_out(server, key=key)
            tell(f"{done.before} -> {done.after} on {done.replicas} replicas in {done.seconds:.1f} s")
            failed = ""
        except ServingError as error:
            failed = wanted  # once is enough; the next version is tried again
            tell(f"error: {error}")
        except (InputError, OSError) as error:
            tell(f"the alias could not be looked up, tried again in {every:g} s: {error}")


@contextlib.contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """Make SIGTERM end what runs within as Ctrl-C does, so that requests in hand are answered."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
