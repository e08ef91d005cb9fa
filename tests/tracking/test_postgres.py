"""Eight runs at once write to a tracking server with users on PostgreSQL, while both are killed; nothing is lost."""

from __future__ import annotations

import os
import pwd
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_runs import until
from recorded import assert_once, begin, record_all, runs, steps_of
from tracking_server import PROGRAMS, Postgres, TrackingServer

from xlt_ray.tracking import courier, outbox
from xlt_ray.tracking.delivery import Delivery
from xlt_ray.tracking.mlflow_run import Refused

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]

WRITERS, STEPS = 8, range(800)
ADMIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "a password of twelve"}


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    if PROGRAMS is None or (os.getuid() == 0 and "postgres" not in {one.pw_name for one in pwd.getpwall()}):
        pytest.skip("no PostgreSQL where Debian installs it")
    # not below pytest's folders, which the user of PostgreSQL may not enter
    with tempfile.TemporaryDirectory(prefix="xlt") as folder:
        Path(folder).chmod(0o755)
        with Postgres(Path(folder) / "data").running() as found:
            yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, database: Postgres) -> Iterator[TrackingServer]:
    """A server with users, whose artefacts pass through it: a writer knows its address and no storage."""
    folder = tmp_path_factory.mktemp("server")
    users = folder / "users.ini"
    users.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder / 'users.db'}\n"
        f"admin_username = {ADMIN['MLFLOW_TRACKING_USERNAME']}\nadmin_password = {ADMIN['MLFLOW_TRACKING_PASSWORD']}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    secrets = {"MLFLOW_AUTH_CONFIG_PATH": str(users), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test"}
    with TrackingServer(folder, database.uri, ("--app-name", "basic-auth"), secrets).running() as found:
        yield found


@pytest.fixture(autouse=True)
def user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ADMIN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def test_eight_writers_lose_and_double_nothing_while_server_and_database_are_killed(
    tmp_path: Path, server: TrackingServer, database: Postgres
) -> None:
    boxes = [begin(tmp_path / f"run{number}", server.url, f"run{number}", experiment="eight")
             for number in range(WRITERS)]  # fmt: skip
    for box in boxes:
        record_all(box, STEPS)
    senders = [courier.start(box) for box in boxes]
    until(lambda: any(outbox.Sent.load(box.folder, server.url).offset for box in boxes), "the first batch", 400)
    assert any(box.pending() for box in boxes)
    database.kill()
    time.sleep(2)  # in which somebody notices
    database.start()
    until(lambda: sum(outbox.Sent.load(box.folder, server.url).offset > 0 for box in boxes) > 2, "more batches", 400)
    assert any(box.pending() for box in boxes)
    server.kill()
    time.sleep(2)
    server.start()
    assert [sender.close(400) for sender in senders] == [0] * WRITERS, (boxes[0].folder / "outbox.log").read_text()
    found = {run.data.tags["xlt.run_key"]: run for run in runs(server.url, "eight")}
    assert sorted(found) == [f"run{number}" for number in range(WRITERS)]
    for run in found.values():
        assert run.info.status == "FINISHED"
        assert sorted(steps_of(server.url, run, "train/loss")) == list(STEPS)


def test_eight_first_writers_share_one_experiment_and_one_database(tmp_path: Path, database: Postgres) -> None:
    uri = database.create("fresh")
    boxes = [begin(tmp_path / f"run{number}", uri, f"run{number}") for number in range(WRITERS)]
    for box in boxes:
        box.metrics({"train/loss": 1.0}, 0)
        box.finish()
    senders = [courier.start(box) for box in boxes]
    assert [sender.close(300) for sender in senders] == [0] * WRITERS, (boxes[0].folder / "outbox.log").read_text()
    assert sorted(run.data.tags["xlt.run_key"] for run in runs(uri)) == [f"run{number}" for number in range(WRITERS)]


def test_a_wrong_password_is_told_with_the_way_out_and_the_right_one_sends_all(
    tmp_path: Path, server: TrackingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = begin(tmp_path, server.url, experiment="password")
    record_all(box)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another of the kind")
    with pytest.raises(Refused, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        Delivery(tmp_path, server.url).send()
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN["MLFLOW_TRACKING_PASSWORD"])
    Delivery(tmp_path, server.url).send()
    run = assert_once(server.url, experiment="password")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/"), "artefacts go through the server"
    assert list((server.folder / "files").rglob("report.html"))
