"""What `xlt check` knows of tracking: a remedy for every kind of wrong address, and names that MLflow refuses."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import typer.testing

from xlt_ray import cli
from xlt_ray.config.masking import masked
from xlt_ray.config.sections import TrackingConfig
from xlt_ray.errors import InputError
from xlt_ray.tracking import preflight, tracking_uri

HERE = "sqlite:///xlt.db"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "DATABRICKS_HOST", "DATABRICKS_RUNTIME_VERSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "databrickscfg"))


SOUND = [
    "off",
    "http://localhost:5000",
    "https://mlflow.example.com/team/",
    "http://[::1]:5000",
    "https://ann:pw@host",
    HERE,
    "sqlite:////var/xlt.db",
    "sqlite+pysqlite:///deep/er/xlt.db",
]


@pytest.mark.parametrize("uri", SOUND)
def test_an_address_that_can_work_is_sound(uri: str) -> None:
    assert preflight.faults(TrackingConfig(uri=uri)) == []


WRONG = [
    ("localhost:5000", "write http://localhost:5000"),
    ("localhost", "write http://localhost"),
    ("127.0.0.1:5000", "write http://127.0.0.1:5000"),
    ("[::1]:5000", "write http://[::1]:5000"),
    ("//localhost:5000", "write http://localhost:5000"),
    ("mlflow.example.com:5000/x", "write http://mlflow.example.com:5000/x"),
    ("mlflow.example.com/x", "write https://mlflow.example.com/x"),
    ("http:/host", "write http://host"),
    ("http:host:5000", "write http://host:5000"),
    ("http//host", "write http://host"),
    ("http:///host", "write http://host"),
    ("HTTP://host", "write http://host"),
    ("http://host:abc", "write http://HOST:5000"),
    ("http://host:5000/#/experiments/1", "write http://host:5000"),
    ("htpp://host:5000", "write http://host:5000"),
    ("postgres://ann@db/x", "write postgresql://ann@db/x"),
    ("postgres+psycopg2://ann@db/x", "write postgresql+psycopg2://ann@db/x"),
    ("mariadb://ann@db/x", "write mysql+pymysql://ann@db/x"),
    ("postgresql:/ann@db/x", "write postgresql://ann@db/x"),
    ("postgresql://ann:p@ss@db/x", "write %40 for @"),
    ("postgresql+nonsense://ann@db/x", "write postgresql://USER@HOST/DATABASE"),
    ("sqlite://xlt.db", f"write {HERE}"),
    ("sqlite:xlt.db", f"write {HERE}"),
    ("sqlite3:///xlt.db", f"write {HERE}"),
    ("SQLite:///xlt.db", f"write {HERE}"),
    ("sqlite:///", f"as {HERE} does"),
    ("sqlite:///:memory:", f"as {HERE} does"),
    ("xlt.db", f"written {HERE}"),
    ("file:./mlruns", f"use {HERE}"),
    ("mlruns", f"use {HERE}"),
    ("./mlruns", f"use {HERE}"),
    (r"C:\mlruns", HERE),
    ("C:/mlruns", HERE),
    ("s3://bucket/mlruns", HERE),
    ("redis://host:6379", HERE),
    ("azureml://host/x", "pip install azureml-mlflow"),
    ("databricks", "databricks configure --profile DEFAULT"),
    ("databricks://prod", "databricks configure --profile prod"),
    ("databricks-uc", "write databricks"),
    ("none", "write off"),
    ("", "or off"),
    ("my server", "or off"),
]


@pytest.mark.parametrize(("uri", "remedy"), WRONG)
def test_a_wrong_address_is_refused_with_what_to_write(uri: str, remedy: str) -> None:
    (fault,) = preflight.faults(TrackingConfig(uri=uri, experiment="/Shared/xlt"))
    assert fault.startswith("tracking.uri: ")
    assert remedy in fault and "\n" not in fault
    with pytest.raises(InputError, match=r"^--uri: "):
        tracking_uri.absolute(uri, "--uri")


@pytest.mark.parametrize("uri", [uri for uri, remedy in WRONG if "write " in remedy and "HOST" not in remedy])
def test_the_remedy_works_when_obeyed(uri: str) -> None:
    """What is to be written has no fault of its own, but for drivers that may be missing here."""
    wrong = tracking_uri.fault(uri) or ""
    written = wrong.rpartition("write ")[2].partition(";")[0].partition(",")[0]
    again = tracking_uri.fault(written)
    assert written.startswith(("%40", "databricks")) or written == "off" or again is None or "pip install" in again


def test_a_missing_driver_names_its_package() -> None:
    (fault,) = preflight.faults(TrackingConfig(uri="mysql+aiomysql://ann:hunter2@db/x"))
    assert fault.endswith("its driver is missing; `pip install 'aiomysql'`") and "hunter2" not in fault


def test_databricks_is_sound_where_it_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "databrickscfg").write_text("[DEFAULT]\nhost = https://x\n[prod]\nhost = https://y\n")
    for uri in ("databricks", "databricks://prod"):
        assert preflight.faults(TrackingConfig(uri=uri, experiment="/Shared/xlt")) == []
    (fault,) = preflight.faults(TrackingConfig(uri="databricks"))
    assert fault == "tracking.experiment: 'xlt': Databricks wants a path; write /Shared/xlt"
    (tmp_path / "databrickscfg").unlink()
    monkeypatch.setenv("DATABRICKS_HOST", "https://x")
    assert tracking_uri.fault("databricks") is None


def test_a_place_of_files_is_allowed_where_mlflow_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert tracking_uri.fault("file:./mlruns") is None and tracking_uri.fault("mlruns") is None
    assert tracking_uri.absolute("./mlruns") == Path("mlruns").absolute().as_uri()


def test_a_database_file_has_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all")
    (tmp_path / "empty.db").touch()
    names = ("text.db", "text.db/x.db", ".", "empty.db")
    faults = {name: " ".join(preflight.faults(TrackingConfig(uri=f"sqlite:///{name}"))) for name in names}
    assert [tracking_uri.fault(f"sqlite:///{name}") for name in names] == [None] * 4, "who only reads is not refused"
    assert "is not an SQLite database" in faults["text.db"]
    assert "is no directory" in faults["text.db/x.db"]
    assert "a directory; name a file in it" in faults["."]
    assert faults["empty.db"] == ""


def test_a_folder_whose_name_would_cut_the_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, sound in (("what?", False), ("a#b %41", True)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        faults = preflight.faults(TrackingConfig())
        assert not faults if sound else f"ends at the ? in {tmp_path}/what?; rename that folder, or" in faults[0]
        elsewhere = "sqlite:////tmp/xlt.db"
        assert tracking_uri.fault(elsewhere) is None and (sound or faults[0].endswith(elsewhere))


def test_a_deleted_experiment_is_known_without_mlflow(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "xlt.db") as database:
        database.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT, lifecycle_stage TEXT)")
        database.execute("INSERT INTO experiments VALUES (3, 'gone', 'deleted'), (4, 'there', 'active')")
    (fault,) = preflight.faults(TrackingConfig(experiment="gone"))
    assert f"`MLFLOW_TRACKING_URI={HERE} mlflow experiments restore --experiment-id 3`, or name another" in fault
    assert preflight.faults(TrackingConfig(experiment="there")) == []
    assert "*" not in tracking_uri.restoring("https://ann:pw@host", "3"), "what is hidden cannot be copied"


ALIASES = {"champion": True, "1": True, "a-b_c": True, "latest": False, "Latest": False, "v1": False, "V22": False}
ALIASES |= {"a b": False, "a/b": False, "a.b": False, "": False, "@x": False}
NAMES = {"intents": True, "in tents": True, "intents.v2": True, "a/b": False, "a:b": False, "..": False, " ": False}
NAMES |= {"a@b": False, "it's": False, "x" * 300: False}


def test_names_are_taken_as_mlflow_takes_them() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils import validation

    def taken(check: Any, value: str) -> bool:
        try:
            check(value)
        except MlflowException:
            return False
        return True

    for alias, sound in ALIASES.items():
        assert (preflight.alias_fault(alias) is None) == sound, alias
        checks = (validation._validate_model_alias_name, validation._validate_model_alias_name_reserved)
        assert all(taken(check, alias) for check in checks) == sound, alias
    for name, sound in NAMES.items():
        assert (preflight.name_fault(name) is None) == sound, name
        assert taken(validation._validate_model_name, name) or not sound, name


def test_the_name_to_write_is_a_sound_one() -> None:
    for name in ("team/intents", "a:b", "it's@home", "/"):
        written = str(preflight.name_fault(name)).rpartition("write ")[2]
        assert preflight.name_fault(written) is None, name


def test_check_lists_all_that_is_wrong_with_tracking(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    import yaml

    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(tiny_settings))
    asked = ["tracking.uri=localhost:5000", "tracking.alias=latest", "tracking.experiment="]
    for verb in (["check"], ["train"], ["train", "--dry-run"]):
        done = typer.testing.CliRunner().invoke(cli.app, [*verb, str(file), *asked[:2]])
        assert done.exit_code == 2
        for told in ("write http://localhost:5000", "alias: 'latest'", "tracking.register_as"):
            assert told in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("outbox.jsonl"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ann:pw@db/x", "postgresql://ann:***@db/x"),
        ("postgresql+psycopg2://ann:p@s/s:w@db:5432/x?sslmode=require", "postgresql+psycopg2://ann:***@db:5432/x?sslmode=require"),
        ("mysql://ann@db/x?password=pw&charset=utf8", "mysql://ann@db/x?password=***&charset=utf8"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dpw", "mssql+pyodbc:///?odbc_connect=***"),
        ("https://token@host/x", "https://***@host/x"),
        ("https://ann:pw@host:5000", "https://***@host:5000"),
        ("http://host?access_token=pw", "http://host?access_token=***"),
        ("request to http://ann:pw@host/api failed, see http://x.org", "request to http://***@host/api failed, see http://x.org"),
        ("http://host:5000/a@b and models:/x@champion", "http://host:5000/a@b and models:/x@champion"),
        ("hf://datasets/x@main/y", "hf://datasets/x@main/y"),
        ("postgresql://ann@db/x", "postgresql://ann@db/x"),
        ("postgresql://ann:12/3@db/x", "postgresql://ann:***@db/x"),
        ("https://host:12/a@b", "https://host:12/a@b"),
    ],
)  # fmt: skip
def test_a_secret_is_masked_and_nothing_else(text: str, shown: str) -> None:
    assert masked(text) == shown == masked(shown)
