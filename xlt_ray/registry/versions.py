"""Read and change MLflow's model registry: versions and aliases, their files, their tags.

What a registry names is not trusted: only files that artefact.json or bundle.json lists are fetched, only under plain
relative names, and the SHA-256 of each is checked. Every change may be made twice without harm.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xlt_ray import durable
from xlt_ray.config.masking import masked
from xlt_ray.errors import InputError, RegistryError
from xlt_ray.tracking.outbox import clean
from xlt_ray.tracking.tracking_uri import absolute

What = Literal["serving", "bundle"]
LISTING: dict[What, str] = {"serving": "artefact.json", "bundle": "bundle.json"}
SERVING = "xlt.serving"  # tag of a version: where its artefact lies among its run's artifacts
MODEL = re.compile(r"models:/([^/@:]+)(?:@([^/@:]+)|/(\d{1,9}))?")
PLAIN = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*){0,4}", re.ASCII)
LARGEST = 64 * 2**20  # bytes of a listing
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
TAG_LIMIT = 4000  # characters; servers keep 5000 of a version's tag


@dataclass(frozen=True)
class Version:
    """One version of a registered model at the tracking server `uri`; `digest` is the tag of the bundle it was made of.

    `created` is milliseconds since 1970.
    """

    name: str
    version: str
    uri: str
    run_id: str
    digest: str
    tags: Mapping[str, str] = field(default_factory=dict)
    created: int = 0

    @property
    def model(self) -> str:
        """The name that MLflow has for this version."""
        return f"models:/{self.name}/{self.version}"


def parse(spec: str) -> tuple[str, str | None, str | None]:
    """Split a model's address into name, alias and version; raise InputError for what is none.

    >>> parse("models:/quickstart@champion"), parse("models:/quickstart/3")
    (('quickstart', 'champion', None), ('quickstart', None, '3'))
    """
    match = MODEL.fullmatch(spec)
    if match is None:
        raise InputError(f"{spec}: not a registered model; write models:/NAME@ALIAS or models:/NAME/VERSION")
    return match[1], match[2], match[3]


def resolve(spec: str, uri: str) -> Version:
    """Find the version of an address; InputError lists the aliases of its model where it has no such version."""
    name, alias, number = parse(spec)
    uri = absolute(uri, "tracking server")
    with _connected(uri) as client:
        model = _present(lambda: client.get_registered_model(name))
        if model is None:
            raise InputError(
                f"{spec}: no registered model {name!r} in {masked(uri)}; register one with `xlt promote RUN`"
            )
        aliases = {key: str(value) for key, value in model.aliases.items()}
        if alias is not None:
            number = aliases.get(alias)
        found = _present(lambda: client.get_model_version(name, number)) if number else None
        if found is None:
            known = ", ".join(f"@{key} (version {value})" for key, value in sorted(aliases.items())) or "no alias"
            raise InputError(f"{spec}: means no version; {name} has {known}; name an alias or /VERSION")
        return _version(found, uri)


def of_run(name: str, run_id: str, digest: str, uri: str) -> Version | None:
    """Find the newest version of a model that a run made of the bundle with this digest."""
    found = _newest(f"name = '{name}' and run_id = '{run_id}'", uri)
    return next((one for one in found if one.digest == digest), None)


def held_before(version: Version, alias: str) -> Version | None:
    """Find the newest earlier version that an alias was moved to at some time."""
    found = _newest(f"name = '{version.name}'", version.uri)
    earlier = [one for one in found if int(one.version) < int(version.version)]
    return next((one for one in earlier if one.tags.get("xlt.alias") == alias), None)


def _newest(query: str, uri: str) -> list[Version]:
    uri = absolute(uri, "tracking server")
    with _connected(uri) as client:
        found = [_version(one, uri) for one in client.search_model_versions(query)]
    return sorted(found, key=lambda one: -int(one.version))


def aliased(name: str, alias: str, uri: str) -> Version | None:
    """Find the version an alias points at; None where there is no such model or alias."""
    uri = absolute(uri, "tracking server")
    with _connected(uri) as client:
        model = _present(lambda: client.get_registered_model(name))
        number = model.aliases.get(alias) if model is not None else None
        found = _present(lambda: client.get_model_version(name, str(number))) if number is not None else None
        return None if found is None else _version(found, uri)


def move_alias(name: str, alias: str, version: str, uri: str) -> None:
    """Point an alias at a version."""
    with _connected(uri) as client:
        client.set_registered_model_alias(name, alias, version)


def tag(version: Version, values: Mapping[str, str]) -> None:
    """Set tags of a version; a later value replaces an earlier one."""
    with _connected(version.uri) as client:
        for key, value in values.items():
            client.set_model_version_tag(version.name, version.version, key, value[:TAG_LIMIT])


def untag(version: Version, key: str) -> None:
    """Remove a tag of a version."""
    with _connected(version.uri) as client:
        client.delete_model_version_tag(version.name, version.version, key)


def default_uri() -> str:
    """Return where models are looked for by default: MLFLOW_TRACKING_URI, else a database in this folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///xlt.db"


@contextmanager
def undisturbed() -> Iterator[str | None]:
    """Yield the tracking server that MLflow was set to in this process, if any, and set it to the same at the end."""
    import mlflow

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    try:
        yield before
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it


def listing(version: Version, what: What) -> bytes | None:
    """Read the file that lists all others of a version's artefact or bundle; None where there is none."""
    with durable.scratch() as scratch:
        return _bytes(_fetch(version, _place(version, what), LISTING[what], scratch))


def predictions(version: Version, into: Path) -> Path | None:
    """Fetch the test predictions of a version's run; None where the run has none."""
    place = f"runs:/{version.run_id}" if version.run_id else None
    return _fetch(version, place, "predictions.npz", into)


def download(version: Version, what: What, into: Path, content: bytes) -> None:
    """Fetch the files that an artefact's or a bundle's `listing` has, into a folder, and check the SHA-256 of each.

    Raises InputError where a name is not plain, and RegistryError where a file is missing or not the one that was
    logged.
    """
    place = _place(version, what)
    into.mkdir(parents=True, exist_ok=True)
    for name, sha256 in _listed(content, version.model).items():
        file = _fetch(version, place, name, into)
        if file is None:
            raise RegistryError(f"{version.model}: {name} is listed but missing in {masked(version.uri)}")
        if durable.digest(file) != sha256:
            raise RegistryError(f"{version.model}: {name} is not the file that was logged (SHA-256 differs)")
    (into / LISTING[what]).write_bytes(content)


def _listed(content: bytes, place: str) -> dict[str, str]:
    """Return the files that an artefact.json or a bundle.json lists, name -> SHA-256; InputError for a strange name."""
    try:
        card = json.loads(content)
        files = card["files"] if "files" in card else card["sha256"]
        found = {str(k): str(v["sha256"] if isinstance(v, Mapping) else v) for k, v in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{place}: its list of files is damaged ({error}); register the model again") from None
    for name in found:
        if not PLAIN.fullmatch(name) or Path(name).name in LISTING.values():
            raise InputError(
                f"{place}: lists a file named {name[:80]!r}, which no model of ours has; it is not fetched"
            )
    return found


def upload(version: Version, folder: Path, place: str) -> None:
    """Log an artefact's folder among the artifacts of a version's run, artefact.json last: it makes the rest valid."""
    last = LISTING["serving"]
    with _connected(version.uri) as client:
        for file in sorted(folder.iterdir(), key=lambda file: (file.name == last, file.name)):
            client.log_artifact(version.run_id, str(file), place)


def record(version: Version, metrics: Mapping[str, float], step: int, files: Mapping[str, str], place: str) -> None:
    """Log metrics and texts on a version's run; their time is the version's, so that repeating it changes nothing."""
    from mlflow.entities import Metric

    with _connected(version.uri) as client:
        figures = [Metric(clean(key), value, version.created, step) for key, value in metrics.items()]
        for start in range(0, len(figures), 1000):
            client.log_batch(version.run_id, metrics=figures[start : start + 1000])
        for name, text in files.items():
            client.log_text(version.run_id, text, f"{place}/{name}")


def _client(uri: str) -> Any:
    """Return MLflow's client; a database that does not exist is an error, where MLflow would create one."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    database = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    if database and not Path(database[1]).exists():
        raise InputError(
            f"{masked(uri)}: no such database; name the run's tracking server by --uri, or where a "
            "server is started by tracking_uri=URI"
        )
    mlflow.set_tracking_uri(uri)  # what a version's `source` names is looked up there, behind the client's back
    return mlflow.MlflowClient(uri)


@contextmanager
def _connected(uri: str) -> Iterator[Any]:
    """Yield MLflow's client of a tracking server, and turn whatever MLflow raises into a RegistryError of one line."""
    try:
        yield _client(uri)
    except (InputError, RegistryError):
        raise
    except Exception as error:  # also of the client's parts: sqlalchemy, requests, cloud storage
        raise RegistryError(masked(f"{uri}: {_why(error)}")) from error


def _why(error: Exception) -> str:
    reason = " ".join(str(error).split())
    if found := re.search(r"Connection refused|timed out|Name or service not known|Failed to resolve", reason):
        return f"does not answer ({found[0]}); start the tracking server, or correct its address"
    return f"{type(error).__name__}: {reason[:500]}"


def _present(request: Callable[[], Any]) -> Any:
    """Return the answer to a request, None where what it asks for does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return request()
    except MlflowException as error:
        if error.error_code in ABSENT:
            return None
        raise


def _version(found: Any, uri: str) -> Version:
    tags = dict(found.tags)
    return Version(
        name=found.name,
        version=str(found.version),
        uri=uri,
        run_id=found.run_id or "",
        digest=tags.get("xlt.bundle", ""),
        tags=tags,
        created=int(found.creation_timestamp),
    )


def _place(version: Version, what: What) -> str | None:
    """Return MLflow's address of the folder of an artefact or a bundle; None where there is none."""
    if what == "serving":
        place = version.tags.get(SERVING, "")
        return f"runs:/{version.run_id}/{place}" if version.run_id and PLAIN.fullmatch(place) else None
    import yaml

    with durable.scratch() as scratch:
        card = _bytes(_fetch(version, version.model, "MLmodel", scratch))
    try:
        function = yaml.safe_load(card or b"")["flavors"]["python_function"]
        data, loader = function["data"], function["loader_module"]
    except (yaml.YAMLError, KeyError, TypeError):
        return None
    ours = loader == "xlt_ray.bundle" and PLAIN.fullmatch(str(data))
    return f"{version.model}/{data}" if ours else None


def _fetch(version: Version, place: str | None, name: str, into: Path) -> Path | None:
    """Fetch one file from a place in MLflow to the same name in a folder; None where it does not exist."""
    if place is None:
        return None
    import mlflow

    with _connected(version.uri), tempfile.TemporaryDirectory(dir=into, prefix=".part-") as scratch:
        where = {"dst_path": scratch, "tracking_uri": version.uri, "registry_uri": version.uri}
        found = _present(lambda: mlflow.artifacts.download_artifacts(f"{place}/{name}", **where))
        if found is None or not Path(found).is_file():
            return None
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        return Path(found).replace(into / name)


def _bytes(file: Path | None) -> bytes | None:
    if file is None:
        return None
    if file.stat().st_size > LARGEST:
        raise RegistryError(f"{file.name}: {file.stat().st_size} bytes, and {LARGEST} is the most that is read")
    return file.read_bytes()
