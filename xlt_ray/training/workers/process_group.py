"""Connect workers by torch's process group, whose meeting place listens on the address of one machine alone.

Torch's own listens on every interface, wherever the workers are.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from torch import distributed

LIMIT = timedelta(minutes=30)  # for one operation of the group
STORES: list[distributed.TCPStore] = []  # of this process, which live as long as it


def meeting_place(host: str) -> distributed.TCPStore:
    """Start the store through which workers connect, on a free port of this machine's address `host`."""
    # it listens at once: a port chosen here for a worker to open could be taken by then
    listening = socket.create_server((host, 0))
    port = listening.getsockname()[1]
    return distributed.TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach(), use_libuv=True
    )


def join(host: str, port: int, rank: int, size: int, gpus: bool) -> None:
    """Join the group of `size` workers that meet at an address."""
    store = distributed.TCPStore(host, port, is_master=False)
    distributed.init_process_group("nccl" if gpus else "gloo", store=store, rank=rank, world_size=size, timeout=LIMIT)


class OwnMeetingPlace(TorchConfig):
    """Ray Train's configuration of torch, with our meeting place instead of torch's."""

    @property
    def backend_cls(self) -> Any:
        """The class that connects workers. Checked with Ray 2.60."""
        return Backend


class Backend(_TorchBackend):
    """Connects the workers of Ray Train when they start."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Open a meeting place on the first worker's machine, and let all join there."""
        gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        host, port = worker_group.execute_single(0, _open)
        worker_group.execute(_set_torch_distributed_env_vars)
        size = len(worker_group)
        ray.get([worker_group.execute_single_async(rank, join, host, port, rank, size, gpus) for rank in range(size)])


def _open() -> tuple[str, int]:
    STORES.append(meeting_place(ray.util.get_node_ip_address()))
    return STORES[-1].host, STORES[-1].port
