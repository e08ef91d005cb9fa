"""Several workers of torch.distributed on this machine, for the tests that need them."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

# a server that has imported these once, and has computed nothing, is forked for each worker
PRELOADED = [
    "pandas",
    "torch._dynamo",
    "transformers.models.bert.modeling_bert",
    "xlt_ray.corpora.loaders.files",
    "xlt_ray.training.loop",
]
TIMEOUT = timedelta(seconds=60)


def on_workers(count: int, call: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run `call(*arguments)` in `count` new processes that gloo joins on 127.0.0.1; return the results by rank.

    What a worker raises is raised here, of the lowest rank that raised.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        # each waits in the rendezvous for all others, so no process gets two of them
        futures = [pool.submit(_worker, rank, count, store.port, call, arguments) for rank in range(count)]
        return [future.result() for future in futures]


def _worker(rank: int, count: int, port: int, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform.startswith("linux") else "lo0"
    torch.set_num_threads(1)
    store = distributed.TCPStore("127.0.0.1", port, is_master=False, timeout=TIMEOUT)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    try:
        return call(*arguments)
    finally:
        distributed.destroy_process_group()
