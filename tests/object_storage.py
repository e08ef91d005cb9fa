"""An emulation of S3 on 127.0.0.1, for tests of runs whose storage is no disk."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator

import fsspec
import pytest
from moto.server import ThreadedMotoServer


@contextlib.contextmanager
def bucket(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start the emulation on a free port, and yield the URL of a new bucket, which this environment has the way to."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else every request is a line of a failed test
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.delenv("AWS_PROFILE", raising=False)
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    try:
        yield f"s3://{name}/runs"
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # which knows the port of this emulation
        server.stop()
