"""A server without Ray, in a thread of a test's process: the same service and routes, batches of one request."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from serve import api
from serve.admission import Keys
from serve.service import Chunk, Model, Service, answer_all
from serve.settings import ServeArgs
from xlt_ray import engine


def loaded(folder: Path, name: str = "models:/tiny/1", version: str = "1") -> Model:
    running = engine.load(folder, precision="float32")
    return Model(running, running.artefact, name, version)  # type: ignore[attr-defined]


def service(model: Model | None, **settings: Any) -> Service:
    """Give a service that runs each chunk in a thread, as Serve's batches are run."""
    args = ServeArgs.model_validate({"model": "models:/tiny/1"} | settings)

    async def infer(chunk: Chunk) -> Any:
        began = time.perf_counter()
        (found,) = await asyncio.to_thread(answer_all, [chunk])
        made.queue.measured(len(chunk.rows), time.perf_counter() - began)
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
    """Listen on a free port of 127.0.0.1; gives the address."""
    server = uvicorn.Server(uvicorn.Config(application(made), host="127.0.0.1", port=0, log_level="error"))
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
