"""Registry and fetching: what a registry names is found or refused by name, and a cache never holds half a model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests import registered
from xlt_ray import cli
from xlt_ray.errors import InputError, RegistryError
from xlt_ray.export import export
from xlt_ray.inference import artefact
from xlt_ray.registry import fetch, promotion, versions
from xlt_ray.registry.fetch import Form
from xlt_ray.registry.versions import Version
from xlt_ray.tracking import mlflow_run

ROOT = Path(__file__).parents[2]


class Home:
    """One registered version without an artefact, one with; shared by the tests of this file, which change nothing."""

    def __init__(self, folder: Path, encoder: Path, corpus: Path) -> None:
        self.folder, self.uri, self.cache = folder, registered.database(folder), folder / "cache"
        data = registered.settings(encoder, corpus, folder / "corpus")
        made = registered.made_bundle(folder / "made", data)
        self.run = registered.finished(folder / "run", self.uri, made, None)
        self.bundle = self.run / "bundle"
        self.plain = promotion.find(str(self.run), "plain")
        version = promotion.find(str(self.run))
        self.artefact = folder / "artefact"
        export.export(self.bundle, self.artefact)
        versions.upload(version, self.artefact, "serving/one")
        versions.tag(version, {versions.SERVING: "serving/one"})
        versions.move_alias(version.name, "champion", version.version, self.uri)
        self.version = versions.resolve("models:/tiny@champion", self.uri)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, tiny_corpus: Path) -> Home:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_run, "_ask", lambda *question: None)  # tests/tracking/test_tracking.py shows what it does
        return Home(tmp_path_factory.mktemp("home"), tiny_encoder, tiny_corpus)


def run(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "xlt_ray.registry.fetch", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=-1, stderr=-1, text=True
    )


def drafts(cache: Path) -> list[Path]:
    """List the folders of a cache that are being made."""
    return list(cache.glob("*/.*"))


# the registry


def test_addresses_are_split_and_nonsense_is_refused() -> None:
    assert versions.parse("models:/a b@live") == ("a b", "live", None)
    assert versions.parse("models:/tiny") == ("tiny", None, None)
    for spec in (
        "tiny",
        "models:/",
        "models:/a/b",
        "models:/a/1/../../x",
        "models:/a@b/c",
        "models:/a@",
        "models:/a/-1",
    ):
        with pytest.raises(InputError, match=r"models:/NAME@ALIAS or models:/NAME/VERSION"):
            versions.parse(spec)


def test_an_address_is_resolved_or_what_there_is_is_listed(home: Home) -> None:
    by_number = versions.resolve("models:/tiny/1", home.uri)
    assert by_number == home.version == versions.aliased("tiny", "champion", home.uri)
    assert (by_number.model, by_number.uri) == ("models:/tiny/1", home.uri)
    assert by_number.digest == mlflow_run.bundle_digest(home.bundle)
    for spec in ("models:/tiny", "models:/tiny/2", "models:/tiny@rival"):
        with pytest.raises(InputError, match=r"means no version; tiny has @champion \(version 1\)"):
            versions.resolve(spec, home.uri)
    with pytest.raises(InputError, match="no registered model 'huge'"):
        versions.resolve("models:/huge@champion", home.uri)
    assert versions.aliased("huge", "champion", home.uri) is versions.aliased("tiny", "rival", home.uri) is None


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"xlt\.db: no such database; name the run's tracking server"):
        versions.resolve("models:/tiny@champion", f"sqlite:///{tmp_path}/xlt.db")
    assert not list(tmp_path.iterdir())


def test_a_server_that_does_not_answer_is_no_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match=r"^http://127\.0\.0\.1:9: does not answer \(Connection refused\); start"):
        versions.resolve("models:/tiny@champion", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    "name", ["../../evil.json", "/etc/passwd", "a/../../b", "", ".", "a//b", "a\\b", ".ssh/key", "bundle.json", "a\0b"]
)
def test_a_file_of_a_strange_name_is_never_fetched(home: Home, name: str, tmp_path: Path) -> None:
    for content in ({"sha256": {name: "0"}}, {"files": {name: {"sha256": "0", "bytes": 1}}}):
        with pytest.raises(InputError, match="which no model of ours has; it is not fetched"):
            versions.download(home.version, "bundle", tmp_path / "to", json.dumps(content).encode())
    assert not list((tmp_path / "to").iterdir())


def test_a_damaged_list_or_file_is_refused(home: Home, tmp_path: Path) -> None:
    for content in (b"", b"[]", b"{}", b'{"files": []}', b"[" * 10**5):
        with pytest.raises(InputError, match="its list of files is damaged"):
            versions.download(home.version, "bundle", tmp_path / "to", content)
    other = json.dumps({"sha256": {"head.safetensors": "0" * 64}}).encode()
    with pytest.raises(RegistryError, match=r"head\.safetensors is not the file that was logged"):
        versions.download(home.version, "bundle", tmp_path / "to", other)
    with pytest.raises(RegistryError, match=r"more\.json is listed but missing"):
        versions.download(home.version, "bundle", tmp_path / "to", other.replace(b"head.safetensors", b"more.json"))


def test_a_tag_that_names_a_strange_place_is_no_artefact(home: Home) -> None:
    for place in ("../../elsewhere", "/etc", "serving/none", ""):
        assert versions.listing(replace(home.version, tags={versions.SERVING: place}), "serving") is None


# fetching


def test_a_version_with_an_artefact_is_fetched_once_and_kept_by_content(home: Home) -> None:
    found = fetch.fetch("models:/tiny@champion", home.uri, cache=home.cache)
    assert (found.model, found.version) == ("models:/tiny/1", "1")
    assert artefact.read(found.folder).precisions == artefact.read(home.artefact).precisions
    marked = Path(found.folder).stat().st_ctime_ns
    assert fetch.fetch("models:/tiny/1", home.uri, cache=home.cache) == found
    assert Path(found.folder).stat().st_ctime_ns == marked
    assert not drafts(home.cache)


def test_a_damaged_or_half_made_folder_of_the_cache_is_made_anew(home: Home) -> None:
    folder = Path(fetch.fetch("models:/tiny@champion", home.uri, cache=home.cache).folder)
    (folder / "tokenizer.json").write_text("{}")
    draft = folder.with_name(f".{folder.name}.999999999.0")
    draft.mkdir()  # as a kill leaves it
    (draft / "model.float32.onnx").write_text("half")
    fetch.fetch("models:/tiny@champion", home.uri, cache=home.cache)
    artefact.read(folder)
    assert not draft.exists()


def test_a_gpu_gets_the_bundle_whatever_there_is(home: Home) -> None:
    for spec, model in (("models:/tiny@champion", "models:/tiny/1"), (str(home.run), str(home.bundle))):
        found = fetch.fetch(spec, home.uri, Form(device="cuda"), cache=home.cache)
        assert found.model == model
        assert (Path(found.folder) / "bundle.json").read_bytes() == (home.bundle / "bundle.json").read_bytes()
    with pytest.raises(InputError, match="an artefact runs on the CPU"):
        fetch.fetch(str(home.artefact), form=Form(device="cuda"))


def test_what_has_no_artefact_is_exported_in_float32_unless_int8_is_asked_for(home: Home) -> None:
    plain = fetch.fetch("models:/plain/1", home.uri, cache=home.cache)
    assert artefact.read(plain.folder).precisions == ("float32",)
    local = fetch.fetch(str(home.run), cache=home.cache)
    assert (local.folder, local.model) == (plain.folder, str(home.bundle))  # the same bundle, so the same artefact
    assert local.version == artefact.bundle_digest(home.bundle)
    small = fetch.fetch(str(home.bundle), form=Form(precision="int8"), cache=home.cache)
    assert artefact.read(small.folder).precisions == ("float32", "int8")


def test_an_artefacts_folder_stands_for_itself(home: Home) -> None:
    found = fetch.fetch(str(home.artefact), cache=home.cache)
    assert (found.folder, found.model, found.version) == (
        str(home.artefact), str(home.artefact), artefact.bundle_digest(home.bundle),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "tpu"}, "device: 'tpu'; one of cpu, cuda"),
        ({"precision": "int4"}, "precision: 'int4'; one of auto"),
        ({"vocabulary": "huge"}, "vocabulary: 'huge'; one of"),
        ({}, "neither an artefact nor a bundle"),
    ],
)
def test_an_invalid_form_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        fetch.fetch(str(tmp_path), form=Form(**changes), cache=tmp_path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "aborted",
            r"a run that is not finished; `xlt train .*aborted/experiment\.yaml` resumes it, or give a fini",
        ),
        ("search", r"a search; give one of its runs, such as .*search/retrained/best$"),
        ("young", r"a search; `xlt tune .*young/search\.yaml` resumes it"),
        ("search/retrained", r"nor a finished run that holds one; give a run in it, such as .*retrained/best$"),
        ("nowhere", r"no such folder; give that of a finished run, or models:/NAME@ALIAS"),
        ("quickstart@champion", r"a registered model is written models:/quickstart@champion$"),
        ("file.txt", r"a file; give the folder of a run"),
        ("runs:/abc/model", r"^runs:/\.\.\.: .*write a folder, or models:/NAME@ALIAS"),
        ("https://host/model", r"^https:/\.\.\.: .*write a folder, or models:/NAME@ALIAS"),
    ],
)
def test_a_folder_without_a_model_is_refused_with_a_remedy(place: str, message: str, tmp_path: Path) -> None:
    for name in ("aborted/experiment.yaml", "search/search.yaml", "young/search.yaml", "file.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("name: x\n")
    (tmp_path / "search/retrained/best/bundle").mkdir(parents=True)
    (tmp_path / "search/retrained/best/bundle/bundle.json").write_text("{}")
    with pytest.raises(InputError, match=message):
        fetch.bundle_in(tmp_path / place)


def test_serving_an_aborted_run_is_refused_in_one_line_before_ray(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("name: x\n")
    (tmp_path / "texts.txt").write_text("hello\n")
    for verb in (["serve", str(tmp_path)], ["predict", str(tmp_path), str(tmp_path / "texts.txt")]):
        done = CliRunner().invoke(cli.app, verb)
        assert done.exit_code == 2 and done.stdout == ""
        assert (
            done.stderr.startswith(f"error: {tmp_path}: a run that is not finished; ") and done.stderr.count("\n") == 1
        )


def test_a_precision_that_was_dropped_is_not_given(home: Home, tmp_path: Path) -> None:
    shutil.copytree(home.artefact, tmp_path / "one")
    found = artefact.read(tmp_path / "one")
    for file in found.folder.glob("*.int8.*"):
        file.unlink()
    artefact.write(replace(found, precisions=("float32",)))
    with pytest.raises(InputError, match="has no int8 network, only float32"):
        fetch.fetch(str(tmp_path / "one"), form=Form(precision="int8"))


# as a process


def test_several_that_fetch_one_thing_at_once_agree_and_a_process_prints_one_line(home: Home, tmp_path: Path) -> None:
    asked = ("models:/tiny@champion", "--tracking", home.uri, "--cache", tmp_path / "cache")
    process = run(*asked, cwd=tmp_path)
    with ThreadPoolExecutor(4) as threads:  # locks of files hold threads apart as they do processes
        fetched = [threads.submit(fetch.fetch, asked[0], home.uri, cache=tmp_path / "cache") for _ in range(4)]
        (folder,) = {one.result().folder for one in fetched}
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("\n") == 1
    assert json.loads(out) == {"folder": folder, "model": "models:/tiny/1", "version": "1"}
    artefact.read(folder)


def test_a_kill_leaves_nothing_half(home: Home, tmp_path: Path) -> None:
    process = run("models:/plain/1", "--tracking", home.uri, "--cache", tmp_path, cwd=tmp_path)
    limit = time.monotonic() + 60
    while not drafts(tmp_path) and time.monotonic() < limit:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    for kind in ("bundles", "exports"):
        for folder in (tmp_path / kind).glob("[!.]*"):
            assert (folder / "bundle.json").is_file() or (folder / artefact.FILE).is_file()
    found = fetch.fetch("models:/plain/1", home.uri, cache=tmp_path)
    artefact.read(found.folder)
    assert not drafts(tmp_path)


def test_errors_are_one_line_with_a_status_and_light_where_nothing_heavy_is_needed(home: Home, tmp_path: Path) -> None:
    for status, arguments in (
        (2, ["--device", "tpu", "x"]),
        (2, [tmp_path / "nowhere"]),
        (2, ["models:/a@b", "--tracking", "http://["]),
    ):
        process = run(*arguments, cwd=tmp_path)
        out, err = process.communicate(timeout=300)
        assert (process.returncode, out) == (status, "")
        assert re.fullmatch(r"error: .+\n", err), err
    code = "import sys; from xlt_ray.registry.fetch import main; assert not main(sys.argv[1:]); "
    code += "print({*sys.modules} & HEAVY)"
    code = code.replace("HEAVY", "{'torch', 'mlflow', 'scipy', 'transformers'}")
    done = subprocess.run(
        [sys.executable, "-c", code, str(home.artefact)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1] == "set()"


def test_versions_of_the_same_content_share_one_folder(home: Home) -> None:
    folders = {
        fetch.fetch(f"models:/{name}/1", home.uri, Form(device="cuda"), home.cache).folder for name in ("tiny", "plain")
    }
    assert len(folders) == 1
    assert isinstance(home.plain, Version) and home.plain.name == "plain"
