"""Tracking: a run never waits for MLflow, and whatever is killed or down, MLflow ends up with everything once."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray_runs import free_ports, until
from recorded import KEY, assert_once, begin, record_all, runs, steps_of, store
from tracking_server import TrackingServer

from xlt_ray import durable
from xlt_ray.errors import InputError
from xlt_ray.tracking import courier, mlflow_run, outbox
from xlt_ray.tracking import environment as tracking_environment
from xlt_ray.tracking.delivery import Delivery, _remedy

ROOT = Path(__file__).parents[2]


def python(code: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that MLflow has created and nobody used; creating one takes seconds, copying it none."""
    file = tmp_path_factory.mktemp("fresh") / "fresh.db"
    store(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(tmp_path: Path, fresh: Path) -> str:
    shutil.copy(fresh, tmp_path / "xlt.db")
    return f"sqlite:///{tmp_path / 'xlt.db'}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, fresh: Path) -> Iterator[str]:
    """A real tracking server; yields its address."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(fresh, folder / "server.db")
    with TrackingServer(folder, f"sqlite:///{folder / 'server.db'}").running() as running:
        yield running.url


class Relay(ThreadingHTTPServer):
    """Stand between a sender and a server; without a server take requests and never answer; once lose an answer."""

    daemon_threads = True

    def __init__(self, server: str | None = None, lose: str | None = None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.server, self.lose = server, lose
        self.called, self.lost, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.uri = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *details: Any) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def relay(self) -> None:
        relay: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        relay.called.set()
        if relay.server is None:
            relay.closed.wait()
            return
        connection = http.client.HTTPConnection(relay.server.removeprefix("http://"))
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        if relay.lose and relay.lose in self.path and not relay.lost.is_set():
            relay.lost.set()
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = relay

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: pytest's output is no access log."""


# ------------------------------------------------------------------------------------------------ the journal alone


def kinds(folder: Path) -> Counter[str]:
    return Counter(record["kind"] for _, record in outbox.records(folder))


def test_off_means_off(tmp_path: Path) -> None:
    box = begin(tmp_path / "run", "off")
    (tmp_path / "run").mkdir()
    record_all(box)
    assert not box.on
    assert courier.start(box).close(0) == box.pending() == 0
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["report.html"]


def test_what_is_recorded_already_is_not_recorded_again(tmp_path: Path) -> None:
    record_all(begin(tmp_path, "http://unused"), range(3))
    first = kinds(tmp_path)
    again = begin(tmp_path, "http://unused")
    record_all(again, range(1, 5))  # resumes from its last checkpoint, before step 1
    again.params({"sources": "a later value"})
    again.tags({"xlt.method": "fine_tune"})
    added = kinds(tmp_path) - first
    assert added == {"open": 1, "metrics": 2, "tags": 1, "artifact": 1, "finish": 1}
    recorded = [record for _, record in outbox.records(tmp_path) if record["kind"] == "metrics"]
    counted = Counter((key, record["step"]) for record in recorded for key in record["values"])
    assert set(counted.values()) == {1}
    assert {step for key, step in counted if key == "train/loss"} == set(range(5))


def test_a_line_torn_by_a_kill_is_cut_off_and_written_anew(tmp_path: Path) -> None:
    begin(tmp_path, "http://unused").metrics({"loss": 1.0}, 0)
    whole = (tmp_path / outbox.FILE).read_bytes()
    with (tmp_path / outbox.FILE).open("ab") as file:
        file.write(b'{"kind": "metrics", "time": 1, "st')
    assert outbox.pending(tmp_path) == 2  # readers do not take half a line for a record
    begin(tmp_path, "http://unused").metrics({"loss": 0.5}, 1)
    lines = (tmp_path / outbox.FILE).read_bytes()
    assert lines.startswith(whole)
    assert [json.loads(line)["kind"] for line in lines.splitlines()] == ["open", "metrics", "open", "metrics"]


def test_a_damaged_line_does_not_hide_the_next(tmp_path: Path) -> None:
    begin(tmp_path, "http://unused").metrics({"loss": 1.0}, 0)
    with (tmp_path / outbox.FILE).open("ab") as file:
        file.write(b"\0" * 30 + b"\n[]\n")
    begin(tmp_path, "http://unused").metrics({"loss": 0.5}, 1)
    assert kinds(tmp_path) == {"open": 2, "metrics": 2, "damaged": 2}


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    begin(tmp_path, "http://unused", "one")
    with pytest.raises(InputError, match="belongs to run one, not two; give each run its own folder"):
        begin(tmp_path, "http://unused", "two")


def test_a_secret_is_masked_in_whatever_is_recorded(tmp_path: Path) -> None:
    secret = f"sqlite:///{tmp_path}/xlt.db?token=hunter2"
    for _ in range(2):
        box = begin(tmp_path, secret)
        assert box.uri == secret  # which delivery needs
        box.params({"corpus.path": secret})
        box.tags({"xlt.place": secret})
        box.dataset("corpus", secret, "f00d", {"files": [secret]}, "training")
    assert "hunter2" not in (tmp_path / outbox.FILE).read_text()
    assert kinds(tmp_path) == {"open": 2, "params": 1, "tags": 1, "dataset": 1}


def test_a_relative_database_is_resolved_where_the_run_started(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    begin(tmp_path / "run", "sqlite:///xlt.db")
    monkeypatch.chdir("/")
    where = outbox.address(tmp_path / "run")
    assert where is not None
    assert where["uri"] == f"sqlite:///{tmp_path}/xlt.db"


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "sqlite:///", "mlruns", "file:mlruns"])
def test_a_place_that_cannot_work_is_refused_at_once(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri: .* sqlite:///xlt\.db"):
        begin(tmp_path, uri)


def test_files_are_found_after_the_run_folder_has_moved(tmp_path: Path) -> None:
    box = begin(tmp_path / "here", "http://unused")
    box.artifact(tmp_path / "here" / "plots" / "gap.svg")
    box.artifact(tmp_path / "elsewhere.txt")
    paths = [record["path"] for _, record in outbox.records(tmp_path / "here") if record["kind"] == "artifact"]
    assert paths == ["plots/gap.svg", str(tmp_path / "elsewhere.txt")]


@pytest.mark.parametrize("name", ["test/accuracy/swh_Latn", "F1@5 (mean)", "/a//b/../c", "", "..", "é+" * 300])
def test_every_name_becomes_one_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_metric, _validate_param

    cleaned = outbox.clean(name)
    _validate_metric(cleaned, 1.0, 0, 0)
    _validate_param(cleaned, "value")
    assert len(cleaned) <= outbox.NAME_LIMIT
    assert outbox.clean(cleaned) == cleaned


def test_importing_tracking_does_not_import_mlflow(tmp_path: Path) -> None:
    code = "import sys, xlt_ray.tracking.mlflow_run; print(sorted({'mlflow', 'torch', 'ray'} & set(sys.modules)))"
    assert python(code, cwd=tmp_path, PYTHONPATH=str(ROOT)).stdout.strip() == "[]"


def test_the_environment_names_machine_and_versions() -> None:
    facts = tracking_environment.environment()
    assert {"python", "platform", "cpu", "cores", "torch", "ray", "transformers", "mlflow"} <= set(facts)
    assert all(isinstance(fact, str) and fact for fact in facts.values())


# ----------------------------------------------------------------------------------------------- delivery to a database


def test_everything_arrives_and_sending_it_again_doubles_nothing(tmp_path: Path, uri: str) -> None:
    record_all(begin(tmp_path / "run", uri))
    Delivery(tmp_path / "run", uri).send()
    first = assert_once(uri)
    outbox.Sent(run_id=first.info.run_id).save(tmp_path / "run", uri)  # as if killed before any of it was noted
    Delivery(tmp_path / "run", uri).send()
    assert assert_once(uri).info.run_id == first.info.run_id
    assert outbox.pending(tmp_path / "run") == 0
    assert first.info.artifact_uri.startswith(f"file://{tmp_path}/mlartifacts/")


def test_a_resumed_run_is_the_same_run_without_repeated_steps(tmp_path: Path, uri: str) -> None:
    record_all(begin(tmp_path / "run", uri), range(3))
    Delivery(tmp_path / "run", uri).send()
    again = begin(tmp_path / "run", uri)
    Delivery(tmp_path / "run", uri).send()
    assert runs(uri)[0].info.status == "RUNNING"
    record_all(again, range(1, 5))
    Delivery(tmp_path / "run", uri).send()
    assert_once(uri, range(5))


def test_a_run_whose_outbox_was_lost_is_found_again_and_its_steps_are_not_repeated(tmp_path: Path, uri: str) -> None:
    record_all(begin(tmp_path / "lost", uri), range(3))
    Delivery(tmp_path / "lost", uri).send()
    box = begin(tmp_path / "new", uri)
    box.params({"sources": "another value, which MLflow would refuse"})
    record_all(box, range(1, 5))
    Delivery(tmp_path / "new", uri).send()
    assert_once(uri, range(5))
    assert outbox.pending(tmp_path / "new") == 0


def test_a_deleted_run_is_made_anew_with_everything(tmp_path: Path, uri: str) -> None:
    record_all(begin(tmp_path / "run", uri), range(3))
    delivery = Delivery(tmp_path / "run", uri)
    delivery.send()
    store(uri).delete_run(runs(uri)[0].info.run_id)
    begin(tmp_path / "run", uri).finish()
    with pytest.raises(Exception, match="deleted"):
        delivery.send()
    delivery.send()
    assert_once(uri)


def test_the_twin_of_a_run_whose_creation_was_given_up_too_early_is_removed(tmp_path: Path, uri: str) -> None:
    record_all(begin(tmp_path / "run", uri))
    where = outbox.address(tmp_path / "run")
    assert where is not None
    run = mlflow_run.Run(tmp_path / "run", uri, where, None)
    outbox.Sent(run_id=run.id).save(tmp_path / "run", uri)
    store(uri).create_run(run.experiment, where["since"], {"xlt.run_key": KEY}, "trial")
    Delivery(tmp_path / "run", uri).send()
    assert assert_once(uri).info.run_id == run.id


def test_a_refused_record_is_set_aside_and_sent_when_it_can_be(tmp_path: Path, uri: str) -> None:
    box = begin(tmp_path / "run", uri)
    box.artifact(tmp_path / "run" / "report.html")
    record_all(box)
    (tmp_path / "run" / "report.html").unlink()
    Delivery(tmp_path / "run", uri).send()
    assert runs(uri)[0].info.status == "FINISHED"  # what came after was not held up
    lines: list[str] = []
    assert courier.sync([tmp_path], report=lines.append) == outbox.pending(tmp_path / "run") == 2
    assert "0 records sent, 2 left: artifact: " in lines[0]
    assert "report.html: no such file or directory" in lines[0]
    (tmp_path / "run" / "report.html").write_text("back")
    Delivery(tmp_path / "run", uri).send(again=True)
    assert outbox.pending(tmp_path / "run") == 0
    assert_once(uri)


def test_what_is_refused_can_be_given_up(tmp_path: Path, uri: str) -> None:
    box = begin(tmp_path / "run", uri)
    box.artifact(tmp_path / "run" / "report.html")
    box.finish()
    lines: list[str] = []
    assert courier.sync([tmp_path], report=lines.append, give_up=True) == outbox.pending(tmp_path / "run") == 0
    assert lines[0].endswith("2 records sent, 0 left, 1 given up")
    assert runs(uri)[0].info.status == "FINISHED"


def test_a_deleted_experiment_refuses_a_run_and_another_takes_it(tmp_path: Path, uri: str) -> None:
    store(uri).delete_experiment(store(uri).create_experiment("xlt"))
    record_all(begin(tmp_path / "run", uri))
    delivery = Delivery(tmp_path / "run", uri)
    at_its_end = SimpleNamespace(closing=threading.Event(), died=False)
    at_its_end.closing.set()
    courier._deliver(delivery, at_its_end)  # type: ignore[arg-type]  # which comes back, so nobody waits for it
    why = outbox.reason(tmp_path / "run")
    assert "Refused: experiment 'xlt' is deleted" in why
    assert f"MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id 1`" in why
    assert f"`xlt sync {tmp_path}/run --experiment NAME`" in why
    assert courier.sync([tmp_path], experiment="another") == 0
    assert_once(uri, experiment="another")
    store(uri).restore_experiment("1")
    begin(tmp_path / "later", uri, "later")
    Delivery(tmp_path / "later", uri).send()
    assert [run.data.tags["xlt.run_key"] for run in runs(uri)] == ["later"]


def test_a_missing_driver_is_no_outage_and_shows_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, "http://unused")
    elsewhere = "mysql+aiomysql://ann:hunter2@db/x"
    outbox.move(tmp_path, uri=elsewhere)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    lines: list[str] = []
    assert courier.sync([tmp_path], report=lines.append) == 2
    assert "Refused: mysql+aiomysql://ann:***@db/x: its driver is missing; `pip install 'aiomysql'`" in lines[0]
    assert not [file for file in tmp_path.iterdir() if "hunter2" in file.read_text()]


def test_refusals_are_no_outages() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2 as codes
    from sqlalchemy.exc import OperationalError

    def of(code: str) -> MlflowException:
        return MlflowException("no", error_code=getattr(codes, code))

    outages: list[Exception] = [of("TEMPORARILY_UNAVAILABLE"), of("INTERNAL_ERROR"), of("REQUEST_LIMIT_EXCEEDED")]
    outages += [ConnectionError("Connection refused"), TimeoutError("timed out")]
    outages += [OperationalError("SELECT 1", {}, Exception("database is locked"))]
    assert [_remedy(one) for one in outages] == [None] * len(outages)
    refusals = {
        "MLFLOW_TRACKING_USERNAME": of("UNAUTHENTICATED"),
        "right to write": of("PERMISSION_DENIED"),
        "no MLflow server": of("ENDPOINT_NOT_FOUND"),
        "--allowed-hosts": MlflowException("Invalid Host header", error_code=codes.PERMISSION_DENIED),
        "right user and password": OperationalError("", {}, Exception('password authentication failed for user "ann"')),
        "create the database": OperationalError("", {}, Exception('database "x" does not exist')),
        "": of("INVALID_PARAMETER_VALUE"),
    }
    for remedy, error in refusals.items():
        assert remedy in str(_remedy(error)) and _remedy(error) is not None


def test_a_value_the_database_refuses_does_not_take_its_batch_along(tmp_path: Path, uri: str) -> None:
    box = begin(tmp_path / "run", uri)
    box.metrics({"loss": 1.0}, 0)
    box.metrics({"loss": 1.0}, 2**70)
    box.metrics({"loss": 0.5}, 2)
    delivery = Delivery(tmp_path / "run", uri)
    for _ in range(10):
        try:
            delivery.send()
            break
        except Exception as error:
            delivery.note(error)
    assert sorted(steps_of(uri, runs(uri)[0], "loss")) == [0, 2]
    assert outbox.pending(tmp_path / "run") == 1


def test_a_long_parameter_is_cut_with_a_note_and_kept_whole_beside_it(tmp_path: Path, uri: str) -> None:
    begin(tmp_path / "run", uri).params({"prompt": "ab" * 4000, "short": "ab"})
    Delivery(tmp_path / "run", uri).send()
    (run,) = runs(uri)
    assert len(run.data.params["prompt"]) == 6000
    assert run.data.params["prompt"].endswith("(cut; all 8000 characters are in the artifact params/prompt.txt)")
    assert Path(run.info.artifact_uri.removeprefix("file://"), "params", "prompt.txt").read_text() == "ab" * 4000


@pytest.mark.parametrize("over", [False, True])
def test_a_child_is_below_a_parent_that_comes_later(tmp_path: Path, uri: str, over: bool) -> None:
    """A delivery gives way to training, so that of a search can still be starting when a short run below it is over."""
    child = begin(tmp_path / "child", uri, "child", parent_key="search")
    if over:
        child.finish()
    Delivery(tmp_path / "child", uri).send()
    parent = begin(tmp_path / "parent", uri, "search")
    Delivery(tmp_path / "parent", uri).send()
    (parent if over else child).finish()
    for name in ("child", "parent"):
        Delivery(tmp_path / name, uri).send()
    known = {run.data.tags["xlt.run_key"]: run for run in runs(uri)}
    assert known["child"].data.tags["mlflow.parentRunId"] == known["search"].info.run_id


@pytest.mark.long
@pytest.mark.slow
def test_three_processes_may_touch_a_fresh_database_first(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'xlt.db'}"
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        record_all(begin(folder, uri, folder.name))
    senders = [courier.start(begin(folder, uri, folder.name)) for folder in folders]
    assert [sender.close(90) for sender in senders] == [0, 0, 0]
    assert sorted(run.data.tags["xlt.run_key"] for run in runs(uri)) == ["a", "b", "c"]
    # two that create one database may ruin it or not, so that nothing failed on the way is what has to be shown
    assert [folder.name for folder in folders if "attempt" in (folder / "outbox.log").read_text()] == []


@pytest.mark.long
@pytest.mark.slow
def test_a_sender_killed_while_it_creates_the_database_leaves_none(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'xlt.db'}"
    box = begin(tmp_path / "run", uri)
    # killed between the first tables and the migrations, at a place and not at a time, so that it is always midway
    code = (
        "import os, sys; from pathlib import Path; from mlflow.store.db import utils; "
        "from xlt_ray.tracking.delivery import Delivery; "
        "utils._upgrade_db = lambda engine: os.kill(os.getpid(), 9); Delivery(Path(sys.argv[1]), sys.argv[2]).send()"
    )
    killed = python(code, box.folder, uri, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    draft = tmp_path / ".xlt.db.new" / "xlt.db"
    assert draft.stat().st_size
    assert not (tmp_path / "xlt.db").exists()
    assert courier.start(box).close(60) == 0  # which creates it again
    assert len(runs(uri)) == 1
    assert not draft.parent.exists()


# --------------------------------------------------------------------------------------- kills, of sender and driver


@pytest.mark.long
@pytest.mark.slow
def test_a_sender_killed_midway_loses_and_doubles_nothing(tmp_path: Path, uri: str) -> None:
    box = begin(tmp_path, uri)
    for step in range(3000):
        box.metrics({"train/loss": 1 / (step + 1)}, step)
    everything = box.pending()
    sender = courier.start(box)
    assert sender.process is not None
    until(lambda: outbox.Sent.load(tmp_path, uri).offset, "the first batch")
    os.kill(sender.process.pid, signal.SIGKILL)
    assert 0 < box.pending() < everything
    assert sender.close(60) == 0  # which resumes where the killed one stopped
    (run,) = runs(uri)
    assert sorted(steps_of(uri, run, "train/loss")) == list(range(3000))


def test_only_one_process_at_a_time_sends_an_outbox(tmp_path: Path, uri: str) -> None:
    record_all(begin(tmp_path / "run", uri))
    lines: list[str] = []
    with durable.locked(tmp_path / "run" / outbox.LOCK):
        assert courier.sync([tmp_path], report=lines.append) == outbox.pending(tmp_path / "run") > 0
    assert "its run is sending it at this moment" in lines[0]


def test_when_the_driver_is_killed_the_sender_finishes_and_marks_the_run_as_killed(tmp_path: Path, uri: str) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from xlt_ray.config.sections import TrackingConfig
from xlt_ray.tracking import courier
from xlt_ray.tracking.outbox import Outbox
box = Outbox.open(Path(sys.argv[1]), TrackingConfig(uri=sys.argv[2]), "driver", "driver")
print(courier.start(box).process.pid, flush=True)
box.metrics({"loss": 1.0}, 0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = python(code, tmp_path / "run", uri, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == -signal.SIGKILL
    ended = Path(f"/proc/{int(done.stdout)}/stat")
    until(lambda: not ended.exists() or ") Z " in ended.read_text(), "the sender to end by itself")
    assert outbox.pending(tmp_path / "run") == 0
    (run,) = runs(uri)
    assert (run.info.status, run.data.metrics) == ("KILLED", {"loss": 1.0})


# ------------------------------------------------------------------------------------------- servers, good and bad


def test_a_server_that_never_answers_blocks_nobody(tmp_path: Path) -> None:
    with Relay(None) as relay:
        box = begin(tmp_path, relay.uri)
        sender = courier.start(box)
        assert relay.called.wait(60), "the sender never called"
        record_all(box, range(200))  # would hang here if recording waited for a server that holds a request
        assert not relay.closed.is_set()
        left = sender.close(0.5)
        assert left == box.pending() == 1 + 1 + 200 + 1 + 1 + 1 + 1 + 1
        assert sender.process is None


@pytest.mark.slow
def test_what_a_server_that_is_down_misses_is_sent_by_sync(tmp_path: Path, server: str) -> None:
    (port,) = free_ports(1)
    box = begin(tmp_path / "run", f"http://127.0.0.1:{port}", experiment="down")
    record_all(box)
    everything = box.pending()
    assert courier.start(box).close(0) == everything
    lines: list[str] = []
    assert courier.sync([tmp_path], report=lines.append) == everything
    assert f"0 records sent, {everything} left: " in lines[0]
    assert "Connection refused" in lines[0]
    with Relay(server, port=port):
        assert courier.sync([tmp_path]) == 0
    assert_once(server, experiment="down")


@pytest.mark.slow
def test_over_http_everything_arrives_once_even_when_an_answer_is_lost(tmp_path: Path, server: str) -> None:
    for number, request in enumerate(("runs/create", "runs/log-batch")):
        with Relay(server, lose=request) as relay:
            record_all(begin(tmp_path / str(number), relay.uri, experiment=f"lost{number}"))
            courier.sync([tmp_path / str(number)])
            assert relay.lost.is_set()
            assert courier.sync([tmp_path / str(number)]) == 0
        first = assert_once(server, experiment=f"lost{number}")
        outbox.Sent(run_id=first.info.run_id).save(tmp_path / str(number), server)
        Delivery(tmp_path / str(number), server).send()
        assert_once(server, experiment=f"lost{number}")


@pytest.mark.slow
def test_sync_can_send_everything_to_another_server(tmp_path: Path, uri: str, server: str) -> None:
    record_all(begin(tmp_path / "run", uri, experiment="moved"))
    Delivery(tmp_path / "run", uri).send()
    assert courier.sync([tmp_path], server) == 0
    assert_once(server, experiment="moved")
    where = outbox.address(tmp_path / "run")
    assert where is not None
    assert where["uri"] == server  # from now on; a later `xlt sync` does not go back to the old one
    assert outbox.pending(tmp_path / "run") == 0


def test_what_was_sent_before_secrets_were_left_out_is_known(tmp_path: Path) -> None:
    uri = "postgresql://ann:hunter2@db/x"
    (tmp_path / "outbox.sent").write_text(json.dumps({uri: {"run_id": "r", "offset": 7}}))
    sent = outbox.Sent.load(tmp_path, uri)
    assert (sent.run_id, sent.offset) == ("r", 7)
    sent.save(tmp_path, uri)
    assert "hunter2" not in (tmp_path / "outbox.sent").read_text()


# --------------------------------------------------------------------------------------------------------------- models

LOADER = """
from pathlib import Path
def _load_pyfunc(path):
    return Model(Path(path, "answer.txt").read_text())
class Model:
    def __init__(self, answer):
        self.answer = answer
    def predict(self, model_input, params=None):
        return [self.answer for _ in range(len(model_input))] if self.answer else []
"""


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a module open bundles without torch, which would make these tests slow."""
    file = tmp_path / "code" / "stand_in.py"
    file.parent.mkdir()
    file.write_text(LOADER)
    monkeypatch.setattr(mlflow_run, "LOADER", "stand_in")
    monkeypatch.setattr(mlflow_run, "PACKAGE", file)
    monkeypatch.syspath_prepend(file.parent)


def bundle_of(folder: Path, answer: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "answer.txt").write_text(answer)
    return folder


def champion(uri: str) -> int:
    return int(store(uri).get_model_version_by_alias("intents", "champion").version)


@pytest.mark.usefixtures("loader")
def test_a_model_is_registered_once_and_its_alias_moves_once(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    client = store(uri)
    for name in ("old", "new"):
        box = begin(tmp_path / name, uri, name)
        box.model(bundle_of(tmp_path / name / "bundle", name), "intents", "champion")
        Delivery(tmp_path / name, uri).send()
    assert champion(uri) == 2
    sent = outbox.Sent.load(tmp_path / "old", uri)
    (output,) = client.get_run(sent.run_id).outputs.model_outputs
    client.finalize_logged_model(output.model_id, "FAILED")  # as if killed in the middle of the upload
    outbox.Sent(run_id=sent.run_id).save(tmp_path / "old", uri)
    Delivery(tmp_path / "old", uri).send()
    assert outbox.pending(tmp_path / "old") == 0
    assert len(client.search_model_versions("name = 'intents'")) == 2
    assert champion(uri) == 2
    for run in runs(uri):
        assert len(client.get_run(run.info.run_id).outputs.model_outputs) == 1
    assert list(scratch.iterdir()) == [], "neither ours nor MLflow's temporary files stay"


@pytest.mark.usefixtures("loader")
def test_a_model_that_does_not_answer_is_not_promoted(tmp_path: Path, uri: str) -> None:
    good = begin(tmp_path / "good", uri, "good")
    good.model(bundle_of(tmp_path / "good" / "bundle", "on"), "intents", "champion")
    Delivery(tmp_path / "good", uri).send()
    bad = begin(tmp_path / "bad", uri, "bad")
    bad.model(bundle_of(tmp_path / "bad" / "bundle", ""), "intents", "champion")
    bad.finish()
    delivery = Delivery(tmp_path / "bad", uri)
    delivery.send()
    (why,) = delivery.sent.failed.values()
    assert "the logged model does not answer" in why
    assert "the answer is [] and not one label" in why
    assert outbox.pending(tmp_path / "bad") == 1
    assert {run.info.status for run in runs(uri)} == {"RUNNING", "FINISHED"}
    assert champion(uri) == 1
    assert len(store(uri).search_model_versions("name = 'intents'")) == 1


def tiny_bundle(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from xlt_ray.config.read import build
    from xlt_ray.inference import bundle
    from xlt_ray.model.collate import Tokenize
    from xlt_ray.model.network import Network

    pieces = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "turn", "on", "off", "the", "light")
    words = {piece: i for i, piece in enumerate(pieces)}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **tokens)
    sizes: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    network = Network(BertModel(BertConfig(vocab_size=len(words), **sizes)), 2, "mean").eval()
    experiment = build({"sources": ["eng_Latn"]})
    bundle.save(folder, bundle.Bundle(network, Tokenize(tokenizer, "", 16), ("on", "off"), experiment, None), "tiny")


@pytest.mark.slow
def test_a_registered_bundle_answers_in_a_fresh_process_elsewhere(tmp_path: Path, server: str) -> None:
    """With nothing but mlflow's address and the model's name, and whatever way its inputs come."""
    from xlt_ray.inference import bundle

    box = begin(tmp_path / "run", server, experiment="bundle")
    tiny_bundle(box.folder / "bundle")
    box.model(box.folder / "bundle", "tiny", "champion")
    lines: list[str] = []
    assert courier.sync([tmp_path], report=lines.append) == 0, lines
    shutil.move(tmp_path / "run", tmp_path / "put_away")
    code = """
import json, sys
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/tiny@champion")
texts = json.loads(sys.argv[2])
asked = (texts, pandas.Series(texts), pandas.DataFrame({"utterance": texts}), pandas.DataFrame({0: texts, 1: texts}))
answers = [list(model.predict(texts)) for texts in asked]
import xlt_ray.bundle
print(json.dumps([answers, xlt_ray.bundle.__file__, model.metadata.run_id]))
"""
    texts = ["turn on the light", "off"]
    (tmp_path / "elsewhere").mkdir()
    done = python(code, server, json.dumps(texts), cwd=tmp_path / "elsewhere", PYTHONPATH="", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    answers, file, run_id = json.loads(done.stdout.splitlines()[-1])
    assert answers == [bundle.load(tmp_path / "put_away" / "bundle").predict(texts)] * 4
    assert not Path(file).is_relative_to(ROOT)
    assert [run.info.run_id for run in runs(server, "bundle")] == [run_id]
    needed = Path(file).parents[2].joinpath("requirements.txt").read_text()
    assert "torch==" in needed and "+cpu" not in needed


def test_a_deleted_run_is_not_made_again_by_its_delivery(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    record_all(begin(folder, f"sqlite:///{tmp_path}/mlflow.db"))
    sent = outbox.Sent.load(folder, "sqlite:///mlflow.db")
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="run: no such folder"):
        sent.save(folder, "sqlite:///mlflow.db")
    assert not folder.exists()


def test_what_the_loader_of_models_imports_is_among_their_requirements() -> None:
    code = """
import importlib.metadata, sys
sys.modules["boto3"] = None  # accelerate imports it where it is there, and does without it
import xlt_ray.bundle
own = {name.split(".")[0] for name, module in sys.modules.items() if module}
packages = importlib.metadata.packages_distributions()
# a name that several share, such as google, tells nothing
print(*sorted({dist for name in own for dist in packages.get(name, ()) if len(set(packages[name])) == 1}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    needed, found = set(done.stdout.split()), {"xlt-ray"}
    found |= set(tracking_environment.PINNED)
    open_ended = list(found)
    while open_ended:  # what these packages require comes with them
        try:
            required = importlib.metadata.requires(open_ended.pop()) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        names = {re.split(r"[^A-Za-z0-9._-]", one)[0] for one in required if "extra ==" not in one}
        open_ended += names - found
        found |= names
    plain = {re.sub(r"[-_.]+", "-", name).lower() for name in found}
    assert [name for name in needed if re.sub(r"[-_.]+", "-", name).lower() not in plain] == []
