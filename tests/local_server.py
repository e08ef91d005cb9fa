"""A server without Ray, in a thread of a test's process: the same service and routes, batches of one request."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn

from serve.http import api
from serve.replica.admission import Keys
from serve.replica.model import Chunk, Model
from serve.replica.service import Service, answer_all
from serve.settings import ServeArgs
from xlt_ray import config
from xlt_ray.evaluation import metrics
from xlt_ray.evaluation.groups import Roles
from xlt_ray.evaluation.predictions import Predictions
from xlt_ray.export import export
from xlt_ray.inference import bundle, engine
from xlt_ray.model import collate, network


def loaded(folder: Path, name: str = "models:/tiny/1", version: str = "1") -> Model:
    running = engine.load(folder, precision="float32")
    return Model(running, running.artefact, name, version)  # type: ignore[attr-defined]


def service(model: Model | None, **settings: Any) -> Service:
    """Make a service that runs each chunk in a thread, as Serve's batches are run."""
    args = ServeArgs.model_validate({"model": "models:/tiny/1"} | settings)

    async def infer(chunk: Chunk) -> Any:
        began = time.perf_counter()
        (found,) = await asyncio.to_thread(answer_all, [chunk])
        made.queue.measured(chunk.texts, time.perf_counter() - began)
        if isinstance(found, Exception):
            raise found
        return found

    made = Service(args, infer)
    made.model = model
    return made


def application(made: Service) -> Any:
    return api.create(made.args, lambda: made, Keys(made.args.api_keys), lambda: "# nothing\n")


@contextlib.contextmanager
def running(made: Service) -> Iterator[str]:
    """Listen on a free port of 127.0.0.1, and yield the address."""
    quiet = {"log_level": "error", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(application(made), host="127.0.0.1", port=0, **quiet))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def client(made: Service) -> Iterator[httpx.Client]:
    """Yield a client of a service that listens as in `running`."""
    with running(made) as address, httpx.Client(base_url=address, trust_env=False, timeout=20) as found:
        yield found


LABELS = ("sport", "food", "travel")
MEASURED = {"eng_Latn": 0.9, "deu_Latn": 0.8, "arb_Arab": 0.7, "heb_Hebr": 0.6, "zho_Hans": 0.5, "swh_Latn": 0.4}
FEW_SHOT = ("heb_Hebr",)


def artefact_of(encoder: Path, folder: Path, seed: int = 0, pairs: bool = False) -> Path:
    """Export an untrained network whose answers differ from text to text; its accuracies are those of MEASURED."""
    corpus = {"loader": "files", "path": str(folder), "text_pair": "second" if pairs else None}
    experiment = config.build(
        {"name": "tiny", "corpus": corpus, "sources": ["eng_Latn", "deu_Latn"], "seed": seed,
         "network": {"init": str(encoder), "max_length": 32, "freeze": []}}
    )  # fmt: skip
    net, tokenize, identity = network.build(experiment.network, len(LABELS), seed)
    with torch.no_grad():
        net.head.weight *= 100
        batch = collate.pad(tokenize([f"eng{i} deu{i} swh{i}" for i in range(20)]), tokenize.tokenizer.pad_token_id)
        net.head.bias -= net.head.weight @ net.eval().features(batch).mean(0)
    truth = np.arange(60) % len(LABELS)
    predictions = {
        code: Predictions(  # fmt: skip
            truth,
            np.where(np.arange(60) < 60 * share, truth, (truth + 1) % 3),
            [*map(str, range(60))],
            np.linspace(0.99, 0.35, 60, dtype=np.float32),
        )
        for code, share in MEASURED.items()
    }
    roles = Roles(("eng_Latn", "deu_Latn"), FEW_SHOT)
    scores = metrics.score(predictions, LABELS, roles, 100, 0)
    bundle.save(folder / "bundle", bundle.Bundle(net.eval(), tokenize, LABELS, experiment, scores), identity)
    return export.export(folder / "bundle", folder / "artefact", precisions=("float32",)).folder
