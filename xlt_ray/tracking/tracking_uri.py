"""Read tracking URIs: find what is wrong with one, make one absolute, and put back a secret that was not stored.

MLflow takes http(s), four kinds of database by SQLAlchemy, Databricks, and what its plugins add; the remedies here are
for what people write instead. Nothing is asked over a network.
"""

from __future__ import annotations

import configparser
import difflib
import os
import re
import shlex
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from xlt_ray.config.masking import HIDDEN, masked
from xlt_ray.errors import InputError

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
HERE = "sqlite:///xlt.db"
CORRECTED = {  # what people write -> what MLflow calls it
    **{"postgres": "postgresql", "postgre": "postgresql", "pg": "postgresql", "pgsql": "postgresql"},
    **{"psql": "postgresql", "mariadb": "mysql+pymysql", "sqlserver": "mssql+pyodbc", "sqlite3": "sqlite"},
}
FILES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "wasbs", "az", "dbfs", "hdfs", "ftp", "sftp")
PLUGINS = {"azureml": "azureml-mlflow", "arn": "sagemaker-mlflow"}
PACKAGES = {  # module of a database driver -> package that brings it, where the names differ
    **{"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"},
    "mysql": "mysql-connector-python",
}
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9.-]*)((?:\+[\w-]+)*):")
WINDOWS = re.compile(r"[A-Za-z]:[\\/].*|\\\\.*")
HOST = r"(?:[^/@\s]*@)?(?:[\w-]+(?:\.[\w-]+)*|\[[0-9A-Fa-f:]+\])"
SERVER = re.compile(rf"(?:{HOST}:\d+|localhost|{HOST}\.[A-Za-z]{{2,}}|\d+(?:\.\d+){{3}})(?:/.*)?")
DATABASE_FILE = re.compile(r"[^:]+\.(?:db|sqlite3?)", re.IGNORECASE)


def whole(uri: str) -> str:
    """Return a recorded URI with its secret, which MLFLOW_TRACKING_URI has where that is the same URI.

    Nothing of ours stores a secret, so that none comes into a report, a bundle or a log. Raises InputError where one is
    needed and MLFLOW_TRACKING_URI does not have it.
    """
    if HIDDEN not in uri:
        return uri
    known = os.environ.get("MLFLOW_TRACKING_URI", "")
    if HIDDEN not in known and masked(known) == uri:
        return known
    raise InputError(f"{uri}: its secret is not stored; set MLFLOW_TRACKING_URI to the same URI, whole")


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute path of an SQLite database; None for every other URI."""
    if not uri.startswith("sqlite"):
        return None
    return Path(uri.partition(":///")[2].partition("?")[0]).expanduser().absolute()


def restoring(uri: str, experiment_id: str) -> str:
    """Return how to restore a deleted experiment."""
    restore = f"mlflow experiments restore --experiment-id {experiment_id}"
    if masked(uri) != uri:
        return f"restore it by `{restore}` with MLFLOW_TRACKING_URI set to the whole URI"
    return f"restore it by `MLFLOW_TRACKING_URI={shlex.quote(uri)} {restore}`"


def absolute(uri: str, place: str = "tracking.uri") -> str:
    """Make a tracking URI independent of the current directory; raise InputError for one that cannot work.

    >>> absolute("http://localhost:5000")
    'http://localhost:5000'
    """
    if wrong := fault(uri):
        raise InputError(f"{place}: {wrong}")
    uri = whole(uri)
    if file := sqlite_file(uri):
        _, mark, options = uri.partition("?")
        return f"{uri.partition(':')[0]}:///{file}{mark}{options}"
    if SCHEME.match(uri) and not uri.startswith("file:") or uri == "databricks":
        return uri
    return Path(uri.removeprefix("file://").removeprefix("file:")).expanduser().absolute().as_uri()


def fault(uri: str, written: bool = False) -> str | None:
    """Return in one line why MLflow cannot work with a URI and what to write instead; None where it can.

    With `written` also why a run cannot be recorded in an SQLite file, which does not matter to those who only read.
    """
    if not uri or re.search(r"\s", uri) and not uri.startswith("sqlite:"):
        return f"empty, or with spaces (%20 in a password); write {HERE}, http://HOST:5000, or off"
    try:
        full = whole(uri)
    except InputError as error:
        return str(error)
    wrong = _fault(full) or (_unwritable(full) if written else None)
    return wrong and f"{_shown(uri)}: {masked(wrong)}"


def _shown(uri: str) -> str:
    return masked(uri) if "://" in uri or "@" not in uri else f"{HIDDEN}@{uri.rpartition('@')[2]}"


def _fault(uri: str) -> str | None:
    if uri.lower() in ("off", "none", "null", "no", "false", "disabled"):
        return "no place; to track nothing write off"
    if WINDOWS.fullmatch(uri):
        return f"a Windows path; MLflow needs a database, such as {HERE}"
    if uri.partition(":")[0] in ("databricks", "databricks-uc", "uc"):
        return _databricks(uri)
    found = SCHEME.match(uri)
    if found is None or SERVER.fullmatch(uri) and "//" not in uri[: found.end() + 2]:
        return _without_scheme(uri)
    scheme, driver = found.groups()
    rest = uri[found.end() :].lstrip("/")
    if scheme in ("http", "https"):
        return _web(uri, rest)
    if scheme in DATABASES:
        return _sqlite(uri) if scheme == "sqlite" else _database(uri)
    if scheme == "file":
        return _file_store()
    if scheme in {plugin.name for plugin in metadata.entry_points(group="mlflow.tracking_store")}:
        return None
    lower = scheme.lower()
    if lower in FILES:
        return f"a place for files, not a tracking server; write {HERE}, or http://HOST:5000"
    if scheme in PLUGINS:
        return f"unknown scheme {scheme}; `pip install {PLUGINS[scheme]}`, which serves it"
    near = difflib.get_close_matches(lower, ("http", "https", "file", *DATABASES), 1, 0.6)
    if lower not in CORRECTED and not near:
        return f"unknown scheme {scheme}; write {HERE}, or http://HOST:5000"
    right = CORRECTED.get(lower) or near[0]
    slashes = "///" if right in ("sqlite", "file") else "//"
    return f"unknown scheme {scheme}; write {right}{'' if '+' in right else driver}:{slashes}{rest}"


def _file_store() -> str | None:
    if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("1", "true"):
        return None
    return f"MLflow has given up plain directories; use {HERE}"


def _without_scheme(uri: str) -> str | None:
    bare = _shown(uri).lstrip("/")
    if re.match(r"https?/", uri):
        scheme, _, rest = bare.partition("/")
        return f"write {scheme}://{rest.lstrip('/')}"
    if DATABASE_FILE.fullmatch(uri):
        return f"a database is written sqlite:///{uri}"
    if Path(uri).is_dir() or not SERVER.fullmatch(uri.lstrip("/")):
        return _file_store()
    scheme = "http" if re.match(r"[^/]*:\d|localhost|[\d.]+(/|$)", bare) else "https"
    return f"a server needs its scheme; write {scheme}://{bare}"


def _databricks(uri: str) -> str | None:
    kind, _, profile = uri.partition("://")
    if kind != "databricks":
        return "holds models only, no runs; write databricks, or databricks://PROFILE"
    if any(os.environ.get(name) for name in ("DATABRICKS_HOST", "DATABRICKS_RUNTIME_VERSION")) and not profile:
        return None
    file = Path(os.environ.get("DATABRICKS_CONFIG_FILE", "~/.databrickscfg")).expanduser()
    known = configparser.ConfigParser(default_section="none of them")
    try:
        known.read(file, encoding="utf-8")
    except (configparser.Error, ValueError) as error:
        return f"{file} cannot be read ({' '.join(str(error).split())}); run `databricks configure` again"
    profile = profile.partition("/")[0] or os.environ.get("DATABRICKS_CONFIG_PROFILE", "DEFAULT")
    if profile in known:
        return None
    return (
        f"{file} has no profile {profile}; run `databricks configure --profile {profile}`, "
        "or set DATABRICKS_HOST and DATABRICKS_TOKEN and write databricks"
    )


def _sqlite(uri: str) -> str | None:
    scheme, _, rest = uri.partition(":")
    path = rest.removeprefix("///").partition("?")[0]
    if path.strip("/") in ("", ":memory:"):
        return f"ends with the process; name a file, as {HERE} does"
    if not rest.startswith("///") or scheme not in ("sqlite", "sqlite+pysqlite"):
        return f"write sqlite:///{path if rest.startswith('///') else path.lstrip('/')}"
    folder = Path(path).expanduser().absolute().parent
    if "?" in str(folder):
        return (
            f"a database's address ends at the ? in {folder}; rename that folder, or name a file elsewhere, "
            "as sqlite:////tmp/xlt.db"
        )
    return None


def _unwritable(uri: str) -> str | None:
    file = sqlite_file(uri)
    if file is None:
        return None
    if os.path.isdir(file):
        return f"a directory; name a file in it, as sqlite:///{file}/xlt.db"
    # not Path.exists, which raises where a directory may not be entered
    there = next(place for place in (file, *file.parents) if os.path.exists(place))
    if there != file and not os.path.isdir(there):
        return f"{there} is no directory; name a file in one"
    if not os.access(there, os.R_OK | os.W_OK):
        return f"{there} may not be written; make it writable, or name another file"
    if there == file and file.stat().st_size:
        with file.open("rb") as stream:
            if stream.read(15) != b"SQLite format 3":
                return f"{file} is not an SQLite database; name another file"
    return None


def _database(uri: str) -> str | None:
    """Look for a database's driver as SQLAlchemy will, which MLflow brings."""
    name, _, rest = uri.partition(":")
    if not rest.startswith("//"):
        return f"write {name}://{rest.lstrip('/')}"
    rest = rest.removeprefix("//")
    user = rest.rpartition("@")[0]
    if "@" in user or "/" in user:
        return "its password holds @ or /; write %40 for @ and %2F for /"
    try:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import SQLAlchemyError

        try:
            make_url(uri).get_dialect().import_dbapi()
        except SQLAlchemyError:
            return f"no such kind of database; write {name.partition('+')[0]}://USER@HOST/DATABASE"
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        return f"its driver is missing; `pip install '{PACKAGES.get(module, module)}'`"
    except ValueError:
        return f"not a database's address; write {name}://USER@HOST:PORT/DATABASE"
    return None


def _web(uri: str, rest: str) -> str | None:
    scheme = uri.partition(":")[0]
    if not re.match(r"https?://[^/]", uri):
        return f"no host; write {scheme}://{rest or 'HOST:5000'}"
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return f"no port by that number; write {scheme}://HOST:5000"
    if not parts.hostname or port == 0:
        return f"no host or port; write {scheme}://HOST:5000"
    if parts.query or parts.fragment or uri.endswith(("?", "#")):
        base = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        token = "; a token goes into MLFLOW_TRACKING_TOKEN" if parts.query else ""
        return f"a page of the server, and not its address; write {base}{token}"
    return None
