"""Reach the controller of Ray Serve: over the REST interface of a cluster's dashboard, or as a driver on this machine.

What `xlt serve` starts has no dashboard: it would cost as much memory as the model, and cannot reach a Ray that listens
on loopback alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from xlt_ray.errors import InputError

Details = dict[str, Any]


class Link(Protocol):
    """Requests to a controller, as Serve's REST interface defines them."""

    def applications(self) -> dict[str, Details]:
        """Return every application: its status, message, deployed_app_config and deployments with their replicas."""

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Make what is deployed equal to a configuration; returns before that is done."""


class Rest:
    """A cluster, by the address of its dashboard; raises InputError where nobody answers."""

    def __init__(self, address: str) -> None:
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        try:
            self._client = ServeSubmissionClient(address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"--address: {address} does not answer as a Ray dashboard ({error})") from None

    def applications(self) -> dict[str, Details]:
        found: dict[str, Details] = self._client.get_serve_details()["applications"]
        return found

    def deploy(self, config: Mapping[str, Any]) -> None:
        self._client.deploy_applications(dict(config))


class Driver:
    """The cluster that this process is connected to."""

    def __init__(self) -> None:
        from ray.serve.context import _get_global_client

        self._client: Any = _get_global_client()

    def applications(self) -> dict[str, Details]:
        import ray

        details = ray.get(self._client._controller.get_serve_instance_details.remote())
        found: dict[str, Details] = json.loads(json.dumps(details, default=str))["applications"]
        return found

    def deploy(self, config: Mapping[str, Any]) -> None:
        from ray.serve.schema import ServeDeploySchema

        self._client.deploy_apps(ServeDeploySchema.model_validate(dict(config)))


@contextlib.contextmanager
def on_loopback(address: str) -> Iterator[str]:
    """Connect to a Ray on this machine's loopback interface, or start one ("local"), and yield its address.

    Raises TrainingError where Ray does not start, or the one that was started dies.
    """
    import ray

    from xlt_ray.training import cluster

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options["include_dashboard"] = False
    try:
        cluster.init_on_loopback(address, **options)
    except ConnectionError:
        raise InputError(f"--port: the server's Ray at {address} does not answer; is it still running?") from None
    try:
        with cluster.watched() if address == "local" else contextlib.nullcontext():
            yield str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()
