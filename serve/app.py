"""Build the application of Ray Serve: `serve run serve.app:build model=models:/NAME@champion`, or serve/config.yaml.

One deployment does everything, because a second hop between processes costs three milliseconds and a share of a core.
A replica fetches its model by a process beside itself that is gone afterwards (`xlt_ray.registry.fetch`), so neither
MLflow nor, on a CPU, torch is ever loaded here, unless a model of words is served. A new `user_config` exchanges the
model under load: the new one is loaded while the old one answers, and one that cannot be loaded leaves the old one
answering.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from ray import serve as ray_serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from serve import loopback
from serve.replica import words
from serve.replica.admission import Keys
from serve.replica.batcher import Batcher, Found
from serve.replica.challenge import Challenge, ChallengeArgs
from serve.replica.model import Chunk, Model
from serve.replica.service import CHUNK_TOKENS, Service, answer_all
from serve.replica.telemetry import ServeTelemetry
from serve.settings import ServeArgs, from_builder
from xlt_ray.config.sections import Section
from xlt_ray.errors import InputError
from xlt_ray.languages.words import split

NAME = "Classifier"  # of the deployment
ONGOING = loopback.HELD  # requests in a replica; as many more wait at its door, and Ray refuses the rest, in plain text
logger = logging.getLogger("ray.serve")


class Choice(Section):
    """Which models answer: the `user_config` that a rollout changes. `model` has no alias left, only a version."""

    model: str = Field(min_length=1)
    previous: str | None = None  # what answered before, for a rollback
    challenger: ChallengeArgs | None = None


@ray_serve.deployment(name=NAME)
@ray_serve.ingress()
class Classifier:
    """One replica: a `Service`, and what waits for its engine."""

    def __init__(self, args: dict[str, Any]) -> None:
        loopback.keep_inside()
        self.args = ServeArgs.model_validate(args)
        self._batcher = Batcher(answer_all, self._note, 2 * CHUNK_TOKENS["cpu"])
        self.service = Service(self.args, self._batcher, ServeTelemetry(), ray_serve.get_replica_context().replica_tag)
        self._swap: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> Any:
        from serve.http import api

        keys = Keys(self.args.api_keys, lambda: ray_serve.get_replica_context().world_size)
        return api.create(self.args, lambda: self.service, keys, _exposition)

    def _note(self, chunks: Sequence[Chunk], results: Found, seconds: float) -> None:
        # what was dropped as late took no time, and would make the engine look quick just when it is not
        done = [chunk for chunk, found in zip(chunks, results, strict=True) if isinstance(found, np.ndarray)]
        if done:
            texts, rows = sum(chunk.texts for chunk in done), sum(len(chunk.rows) for chunk in done)
            self.service.queue.measured(texts, seconds)
            self.service.telemetry.batch(texts, rows, sum(chunk.tokens for chunk in done), seconds)
        self.service.telemetry.waiting(self.service.queue.waiting)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Change to the models of a `Choice`: at once when there is none yet, else beside the one that answers.

        Raising here would make Serve kill a replica that works, so it only raises at the start.
        """
        choice = Choice.model_validate(user_config)
        if self.service.model is None:
            await self._change(choice)
            return
        if self._swap is not None:
            self._swap.cancel()
        self._swap = asyncio.get_running_loop().create_task(self._try(choice))

    async def _try(self, choice: Choice) -> None:
        self.service.loading, self.service.problem = choice.model, ""
        try:
            await self._change(choice)
        except Exception as error:  # whatever it is: the present model goes on answering
            self.service.problem = f"{choice.model} could not be loaded: {error}"
            logger.error(self.service.problem)
        finally:
            self.service.loading = ""

    async def _change(self, choice: Choice) -> None:
        before, challenge = self.service.model, self.service.challenge
        model = before
        if model is None or model.name != choice.model:
            model = await load(choice.model, self.args)
        if choice.challenger is None:
            challenge = None
        elif challenge is None or challenge.args != choice.challenger:
            challenge = Challenge(choice.challenger, await load(choice.challenger.model, self.args))
        words.refuse_other_kind(model, before, None if challenge is None else challenge.model)
        # two chunks' worth: rows of one batch are sorted by length, and more rows leave less padding
        self._batcher.most = 2 * self.service.chunk_tokens(model)
        self.service.model, self.service.challenge = model, challenge
        self.service.problem = ""

    def check_health(self) -> None:
        """Do nothing: Serve replaces a replica that cannot even run this."""


async def load(spec: str, args: ServeArgs) -> Model:
    """Fetch a model in a process of its own, open it here in a thread, and ask it once.

    Raises RuntimeError with the last line of that process's errors, or what `engine.load` raises.
    """
    command = [sys.executable, "-m", "xlt_ray.registry.fetch", spec, "--device", args.device]
    command += ["--precision", args.precision, "--vocabulary", args.vocabulary, "--cache", str(args.cache)]
    command += ["--languages", ",".join(args.languages)]
    pipe = asyncio.subprocess.PIPE
    environment = os.environ | {"MLFLOW_TRACKING_URI": args.tracking_uri}  # an argument could be read by anybody
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment
    )
    try:
        output, problem = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        raise
    if process.returncode:
        lines = problem.decode(errors="replace").strip().splitlines()
        raise RuntimeError(lines[-1].removeprefix("error: ")[-1000:] if lines else f"exit code {process.returncode}")
    found = json.loads(output.decode().strip().splitlines()[-1])
    return await asyncio.to_thread(_open, found, args)


def _open(found: dict[str, Any], args: ServeArgs) -> Model:
    from xlt_ray.inference import engine

    folder = Path(found["folder"])
    threads = max(1, round(args.scaling.cpus))
    running = engine.load(
        folder, precision=args.precision, device=args.device, threads=threads, tokens=args.tokens_per_batch
    )
    model = Model(running, running.artefact, found["model"], found["version"])
    question = ["Please turn on the light in the kitchen."]
    if running.words is None:
        answer, wanted = engine.classify(running, question, question if model.artefact.pairs else None), 1
    else:
        if args.min_confidence:
            raise InputError(f"min_confidence: {args.min_confidence:g} is for labels of whole texts; leave it out")
        (rows,) = running.words.rows(question)
        answer, wanted = running.probabilities(rows), len(split(question[0]))
    if answer.shape != (wanted, len(running.labels)) or not np.isfinite(answer).all():
        raise RuntimeError(f"{folder}: answers with {answer.shape} numbers that are not probabilities")
    return model


def _exposition() -> str:
    """Read this machine's Ray metrics and keep what is ours or Serve's."""
    import urllib.request

    import ray

    mine = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == mine)
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=5) as response:
        lines = response.read().decode().splitlines()
    kept = ("ray_xlt_", "ray_serve_")
    return "".join(
        f"{line}\n" for line in lines if line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(kept)
    )


def resolve(settings: ServeArgs, spec: str | None = None) -> str:
    """Return a model's version in the registry or its whole path, so that all replicas load the same.

    `spec` may be an alias or a relative path; by default it is the settings' own.
    """
    spec = spec or settings.model
    from xlt_ray.registry import fetch, versions

    if not spec.startswith("models:"):
        folder = Path(spec).expanduser().absolute()
        return str(fetch.bundle_in(folder) if folder.exists() else folder)  # it may lie on the server's machine alone
    found = versions.resolve(spec, settings.tracking_uri)
    return f"models:/{found.name}/{found.version}"


def build(args: dict[str, Any]) -> Application:
    """Make the application of `ServeArgs`, as plain data or as the `KEY=VALUE`s of `serve run`; raises InputError."""
    settings = from_builder(args)
    scaling, choice = settings.scaling, Choice(model=resolve(settings))
    options: dict[str, Any] = {
        "user_config": choice.model_dump(mode="json"),
        "max_ongoing_requests": ONGOING,
        "max_queued_requests": ONGOING,
        "backpressure_config": BackpressureConfig(status_code=503, retry_after_s=1),
        "ray_actor_options": {"num_cpus": scaling.cpus, "num_gpus": scaling.gpus},
        "graceful_shutdown_timeout_s": settings.limits.deadline_s + 5,
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        "max_surge_percent": 100,
    }
    if scaling.max_replicas > scaling.min_replicas:
        options["autoscaling_config"] = AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            target_ongoing_requests=scaling.target_ongoing_requests,
        )
    else:
        options["num_replicas"] = scaling.min_replicas
    deployment: Any = Classifier
    app: Application = deployment.options(**options).bind(settings.model_dump(mode="json"))
    return app
