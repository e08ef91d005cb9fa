"""A server on real Ray Serve, as `xlt serve` starts it: answers, limits of where it listens, change, kill, end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from artefacts import word_by_word
from local_server import artefact_of
from ray_runs import ROOT, Process, environment, free_ports, offspring, until
from test_served_words import saved

from tests import registered
from xlt_ray.inference import artefact
from xlt_ray.registry import promotion, versions
from xlt_ray.tracking import mlflow_run
from xlt_ray.translation import readings

REPLICA = "ServeReplica:xlt"
# 127.0.0.1, ::1 and ::ffff:127.0.0.1 as /proc/net writes them
LOOPBACK = ("0100007F:", "00000000000000000000000001000000:", "0000000000000000FFFF00000100007F:")


class Running:
    """`xlt serve` in a session of its own, with a home folder of its own."""

    def __init__(self, folder: Path, model: Path | str, *settings: str) -> None:
        (self.port,) = free_ports(1)
        self.folder, self.log, self.family = folder, folder / "serve.log", dict[int, Process]()
        self.scratch = Path(tempfile.mkdtemp(prefix="x"))  # short: Ray's sockets lie in it
        # a home of its own for the address it leaves, and so a token that is not the user's
        self.environment = environment(HOME=str(folder), TMPDIR=str(self.scratch), PYTHONPATH=str(ROOT))
        options = ["--port", str(self.port), "scaling.min_replicas=2", "scaling.max_replicas=2", "scaling.cpus=0.5"]
        options += settings
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "xlt_ray.cli", "serve", str(model), *options, f"cache_dir={folder}/cache"],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self.url = f"http://127.0.0.1:{self.port}"

    def told(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def up(self) -> bool:
        assert self.process.poll() is None, self.told()
        return "answers at" in self.told()

    def look(self) -> list[Process]:
        found = offspring(self.process.pid)
        self.family.update({one.pid: one for one in found})
        return found

    def replicas(self) -> list[Process]:
        return [one for one in self.look() if REPLICA in one.command]

    def xlt(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "xlt_ray.cli", *map(str, arguments), "--port", str(self.port)]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)

    def end(self) -> None:
        self.look()
        self.process.kill()
        self.process.wait()
        for one in self.family.values():
            one.kill()
        shutil.rmtree(self.scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """Two artefacts that answer, by readings in Swahili, and one whose tokenizer was changed after its export."""
    folder = tmp_path_factory.mktemp("models")
    made = artefact_of(tiny_encoder, folder)
    (made / readings.FILE).write_text(readings.to_json(word_by_word()), encoding="utf-8")
    artefact.write(artefact.read(made))
    made.rename(folder / "first")
    for name in ("second", "broken"):
        shutil.copytree(folder / "first", folder / name)
    with (folder / "broken" / "tokenizer.json").open("a") as file:
        file.write(" ")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("serving"), models / "first")
    try:
        until(running.up, "the server", 120)
        yield running
    finally:
        running.end()


class Load:
    """Clients that ask without a pause while something happens; every status and every model that answered is kept."""

    def __init__(self, url: str, clients: int = 6) -> None:
        self.url, self.statuses, self.models = url, Counter[Any](), Counter[str]()
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(i,)) for i in range(clients)]

    def work(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self.stop.is_set():
                try:
                    answer = client.post("/v1/classify", json={"texts": [f"eng{number}", f"deu{number} eng3"]})
                except httpx.HTTPError as error:
                    self.statuses[repr(error)] += 1
                    continue
                finally:
                    self.stop.wait(0.02)  # what the commands under test need of the two cores
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    self.models[answer.json()["model"]["name"]] += 1

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        until(lambda: self.statuses[200] > 10, "the first answers", 30)
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.slow
def test_it_answers_and_says_what_it_is(server: Running, models: Path) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        told = client.get("/v1/model").json()
        assert told["model"]["name"] == str(models / "first") and told["problem"] == ""
        answer = client.post("/v1/classify", json={"texts": ["eng1 eng2"], "top_k": 3, "languages": ["en"]})
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["results"]
        assert [one["label"] for one in result["scores"]][0] == result["label"]
        assert sum(one["score"] for one in result["scores"]) == pytest.approx(1, abs=0.001)
        assert (
            client.get("/readyz").status_code == client.get("/").status_code == client.get("/docs").status_code == 200
        )
        asked = {"texts": ["swh2 swh4", "eng1"], "languages": ["sw", "en"], "readings": True}
        several, one = client.post("/v1/classify", json=asked).json()["results"]
        assert several["read"] == "original + 2 word-by-word English readings" and one["read"] == "original"
        assert [reading["text"] for reading in several["readings"]] == ["swh2 swh4"] + ["eng14 eng28"] * 2
        lines = "".join(json.dumps(f"eng{i}") + "\n" for i in range(300))
        streamed = client.post("/v1/classify/stream", content=lines, headers={"content-type": "application/x-ndjson"})
        assert [json.loads(line)["line"] for line in streamed.text.splitlines()] == list(range(1, 301))


@pytest.mark.slow
def test_nothing_it_started_listens_beyond_this_machine(server: Running) -> None:
    def found() -> list[tuple[int, list[str]]]:
        return listening({server.process.pid, *(one.pid for one in server.look())})

    def its_port() -> bool:
        return any(int(fields[1].rpartition(":")[2], 16) == server.port for _, fields in found())

    until(its_port, "its port among those found", 60)  # the kernel's list may lack a socket while others open and close
    assert len(server.look()) > 5
    assert not [f"{fields[1]} {pid}" for pid, fields in found() if not fields[1].startswith(LOOPBACK)]


def listening(pids: set[int]) -> list[tuple[int, list[str]]]:
    """List the sockets that processes listen on, as /proc/net/tcp has them."""
    table = {}
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(file).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                table[fields[9]] = fields
    found = []
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").glob("*") if Path(f"/proc/{pid}/fd").is_dir() else ():
            try:
                inode = os.readlink(entry).removeprefix("socket:[").removesuffix("]")
            except OSError:
                continue
            if inode in table:
                found.append((pid, table[inode]))
    return found


@pytest.mark.slow
def test_a_replica_has_loaded_neither_torch_nor_mlflow(server: Running) -> None:
    for replica in server.replicas():
        mapped = Path(f"/proc/{replica.pid}/maps").read_text()
        assert "onnxruntime" in mapped
        assert "torch/lib" not in mapped


@pytest.mark.long
@pytest.mark.slow
def test_the_model_is_changed_and_changed_back_without_a_failed_request(server: Running, models: Path) -> None:
    before = {one.pid for one in server.replicas()}
    with Load(server.url) as load:
        done = server.xlt("rollout", models / "second")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{models / 'first'} -> {models / 'second'}: 2 replicas" in done.stdout
        assert httpx.get(f"{server.url}/v1/model").json()["model"]["name"] == str(models / "second")
        refused = server.xlt("rollout", models / "broken")
        assert refused.returncode == 1
        assert "tokenizer.json" in refused.stderr and f"{models / 'second'} goes on answering" in refused.stderr
        back = server.xlt("rollback")
        assert back.returncode == 0 and f"-> {models / 'first'}" in back.stdout, back.stdout + back.stderr
    assert set(load.statuses) == {200}
    assert set(load.models) == {str(models / "first"), str(models / "second")}
    assert {one.pid for one in server.replicas()} == before, "no replica was started anew"


@pytest.mark.slow
def test_a_killed_replica_costs_nobody_an_answer_and_is_replaced(server: Running) -> None:
    first, *others = server.replicas()
    with Load(server.url) as load:
        first.kill()
        until(lambda: len([one for one in server.replicas() if one.pid != first.pid]) > len(others), "a new one", 60)
        asked = load.statuses[200]
        until(lambda: load.statuses[200] > asked + 50, "more answers", 30)
    assert set(load.statuses) <= {200, 503}
    assert load.statuses[503] <= 8, "at most what was in hand"


@pytest.mark.slow
def test_what_it_counted_is_there_for_prometheus(server: Running) -> None:
    httpx.post(f"{server.url}/v1/classify", json={"texts": ["eng1"], "languages": ["eng_Latn"]})

    def counted() -> bool:
        told = httpx.get(f"{server.url}/metrics", timeout=10).text
        return "ray_xlt_texts" in told and 'language="eng_Latn"' in told and "ray_xlt_batch_seconds_bucket" in told

    until(counted, "the metrics", 60)
    told = httpx.get(f"{server.url}/metrics", timeout=10).text
    assert "ray_xlt_batch_rows_bucket" in told
    assert "ray_xlt_labels" in told and "ray_xlt_requests" in told and "eng1" not in told


@pytest.mark.slow
def test_a_challenger_in_the_shadow_is_compared_and_recorded(server: Running, models: Path, tmp_path: Path) -> None:
    begun = server.xlt("rollout", models / "first", "--challenger", models / "second", "--share", "1")
    assert begun.returncode == 0, begun.stdout + begun.stderr
    texts = [f"eng{i} eng{i + 1}" for i in range(20)]
    for text in texts:
        answer = httpx.post(f"{server.url}/v1/classify", json={"texts": [text], "languages": ["en"]})
        assert answer.json()["model"]["name"] == str(models / "first")
    label = httpx.get(f"{server.url}/v1/model").json()["labels"][0]
    judged = httpx.post(f"{server.url}/v1/feedback", json={"texts": texts[:5], "labels": [label] * 5}).json()
    assert len(judged["models"]) == 2
    shown = server.xlt("challenge")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    english = next(line for line in shown.stdout.splitlines() if "English" in line)
    assert "100.0%" in english, "two equal models agree"
    assert server.xlt("rollout").returncode == 0
    assert httpx.get(f"{server.url}/v1/model").json()["challenger"] is None


@pytest.mark.slow
def test_ctrl_c_answers_what_is_in_hand_and_leaves_nothing_behind(server: Running) -> None:
    server.look()
    proxied = list(server.scratch.glob("xlt-*/*/haproxy.cfg"))
    with httpx.Client(base_url=server.url, timeout=60) as client:
        answers: list[Any] = []
        work = threading.Thread(
            target=lambda: answers.append(client.post("/v1/classify", json={"texts": ["eng1 " * 30] * 128}))
        )
        work.start()
        server.process.send_signal(signal.SIGINT)
        work.join()
    assert answers[0].status_code in (200, 503)
    with contextlib.suppress(subprocess.TimeoutExpired):  # then what it told shows where it hangs
        server.process.wait(60)
    assert server.process.poll() == 0, server.told()
    assert "stopping" in server.told()
    until(lambda: not [one for one in server.family.values() if one.now()], "the end of what it started", 30)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=2)
    assert proxied, "HAProxy's files lay where they are tidied up"
    left = sorted(str(one.relative_to(server.scratch)) for one in server.scratch.rglob("*"))
    # Ray keeps its logs, and onnxruntime the number of a session, one file whatever runs; nothing else stays
    assert [one for one in left if one.split("/")[0] not in ("ray", ".ses")] == []


@pytest.mark.long
@pytest.mark.parametrize(("process", "name"), [("raylet/raylet", "raylet"), ("gcs/gcs_server", "head")])
def test_where_ray_itself_dies_the_server_ends_soon_with_a_sentence(
    models: Path, tmp_path: Path, process: str, name: str
) -> None:
    running = Running(tmp_path, models / "first")
    try:
        until(running.up, "the server", 120)
        next(one for one in running.look() if process in one.command).kill()
        assert running.process.wait(60) == 1
        last = running.told().splitlines()[-1]
        assert last.startswith(f"error: Ray's {name}") and last.endswith("the same command goes on")
        assert "Traceback" not in running.told() and "state-dump" not in running.told()
        # Ray's agents look for their head and their raylet once in a while, for up to a minute
        for one in list(running.family.values()):
            until(lambda one=one: not one.now(), f"the end of {one.command[:100]}", 120)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", running.port), timeout=2)
    finally:
        running.end()


@pytest.mark.long
def test_registered_words_are_served_by_their_alias_and_no_other_kind_takes_their_place(
    models: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, uri = saved(tmp_path / "bundle", tiny_encoder), registered.database(tmp_path)
    monkeypatch.setattr(mlflow_run, "_ask", lambda *question: None)  # tests/registry shows what it does
    for name in ("first", "second"):
        version = promotion.find(str(registered.finished(tmp_path / name, uri, bundle, None)), "tagger", uri)
        versions.tag(version, {f"{promotion.PREVIOUS}.champion": "none" if name == "first" else "1"})
    versions.move_alias("tagger", "champion", "1", uri)
    running = Running(tmp_path, "models:/tagger@champion", f"tracking_uri={uri}")
    try:
        until(running.up, "the server", 300)  # torch is loaded too
        asked = {"texts": ["eng1 eng2", "swh3 " * 100], "languages": ["en", "sw"]}
        found = httpx.post(f"{running.url}/v1/tag", json=asked, timeout=30).json()
        assert found["model"]["name"] == "models:/tagger/1"
        assert [len(one["words"]) for one in found["results"]] == [2, 100]
        lines = "".join(json.dumps(f"eng{i}") + "\n" for i in range(300))
        kind = {"content-type": "application/x-ndjson"}
        streamed = httpx.post(f"{running.url}/v1/tag/stream", content=lines, headers=kind, timeout=60)
        ends = [json.loads(line)["words"][0]["end"] for line in streamed.text.splitlines()]
        assert ends == [len(f"eng{i}") for i in range(300)]
        for refused in (running.xlt("rollout", models / "first"), running.xlt("rollout", "--challenger", bundle)):
            assert refused.returncode == 1 and "model of words" in refused.stdout + refused.stderr
        versions.move_alias("tagger", "champion", "2", uri)
        for verb, number in (("rollout", "2"), ("rollback", "1")):
            done = running.xlt(verb)
            assert done.returncode == 0, done.stdout + done.stderr
            shown = httpx.get(f"{running.url}/v1/model").json()
            assert (shown["task"], shown["model"]["name"]) == ("tag", f"models:/tagger/{number}")
        assert versions.resolve("models:/tagger@champion", uri).version == "1"
    finally:
        running.end()
