"""Log to MLflow what an outbox holds: a run's parameters, metrics, artifacts, datasets, model.

Everything here may be interrupted at any point and done again without doubling anything. MLflow drops a metric equal in
name, step, time and value, a parameter or tag with the same value, a dataset with the same name and digest; a run, a
model and a registered version are looked for by tags of ours before they are created.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlt_ray import durable
from xlt_ray.config.masking import masked
from xlt_ray.tracking import tracking_uri
from xlt_ray.tracking.environment import requirements

HOPELESS = (  # what MLflow answers again however often it is asked
    *("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "ENDPOINT_NOT_FOUND"),
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "FEATURE_DISABLED", "RESOURCE_ALREADY_EXISTS"),
)

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities import Run as MlflowRun

PARAM_LIMIT, TAG_LIMIT = 6000, 8000  # characters MLflow keeps of a value
LOADER = "xlt_ray.bundle"  # its `_load_pyfunc` opens a bundle; every registered model names it
PACKAGE = Path(__file__).parents[1]  # which travels with a model
QUESTION = "Please turn on the light in the kitchen."
ASK = """
import json, sys
import mlflow
answer = list(mlflow.pyfunc.load_model(sys.argv[1]).predict(json.loads(sys.argv[2])))
assert len(answer) == 1 and isinstance(answer[0], str), f"the answer is {answer!r} and not one label"
"""

Record = dict[str, Any]


class Run:
    """The MLflow run that stands for an outbox: found by its tag `xlt.run_key`, else created.

    `where` is the outbox's address and `run_id` the run it was delivered to before, if any. Raises what mlflow raises.
    """

    def __init__(self, folder: Path, uri: str, where: Record, run_id: str | None) -> None:
        import mlflow

        self.folder, self.uri, self.where = folder, uri, where
        if wrong := tracking_uri.fault(uri, written=True):
            raise Refused(f"{wrong}; or send elsewhere by `xlt sync {folder} --uri URI`")
        _create_database(uri)
        _connect(uri)
        mlflow.set_tracking_uri(uri)  # registering a model asks for it behind the client's back
        self.client = mlflow.MlflowClient(uri)
        self.experiment = self._find_experiment()
        runs = self._search(where["run_key"])
        known = [run for run in runs if run.info.run_id == run_id]
        self.found = bool(runs)
        self.id: str = (known or runs or [self._create()])[0].info.run_id
        self._params: set[str] = set()
        self._steps: set[tuple[str, int]] = set()

    def skip_known(self) -> None:
        """Leave what the run holds already as it is; for a run that another outbox, lost since, had begun."""
        data = self.client.get_run(self.id).data
        self._params = set(data.params)
        histories = (self.client.get_metric_history(self.id, key) for key in data.metrics)
        self._steps = {(metric.key, metric.step) for history in histories for metric in history}

    def log(self, records: Sequence[Record]) -> None:
        """Log records of one kind; raise Refused when trying again is pointless."""
        from mlflow.exceptions import MlflowException

        kind = records[0]["kind"]
        if kind in ("moved", "damaged"):
            return
        try:
            getattr(self, f"_log_{kind}")(records)
        except MlflowException as error:
            if error.error_code not in HOPELESS:
                raise
            remedy = f"; register it by `xlt promote {self.folder} --name NAME --alias ALIAS`"
            raise Refused(f"{error.message}{remedy if kind == 'model' else ''}") from error

    def end(self, status: str, time_ms: int | None = None) -> None:
        """Set how and when the run ended, and tie it to its parent and its children, whichever came first."""
        self._tag(self._parent())
        self._nest_children()
        self.client.set_terminated(self.id, status, time_ms)

    def _search(self, run_key: str) -> list[MlflowRun]:
        found = self.client.search_runs([self.experiment], f"tags.`xlt.run_key` = '{run_key}'", max_results=100)
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))

    def _create(self) -> MlflowRun:
        tags = {"xlt.run_key": self.where["run_key"]}
        return self.client.create_run(self.experiment, self.where["since"], tags, self.where["run_name"])

    def _find_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self.where["experiment"]
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, _artifacts(self.uri, self.folder)))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)  # another process was faster
        assert found is not None
        if found.lifecycle_stage == "deleted":
            raise Refused(
                f"experiment {name!r} is deleted in {masked(self.uri)}; "
                f"{tracking_uri.restoring(self.uri, found.experiment_id)}, "
                f"or name another by `xlt sync {self.folder} --experiment NAME`"
            )
        return str(found.experiment_id)

    def _parent(self) -> dict[str, str]:
        # asked at the beginning and at the end; a parent that comes to MLflow after both nests this run at its own end
        key = self.where["parent_key"]
        runs = self._search(key) if key else []
        return {"xlt.parent_key": key, **({"mlflow.parentRunId": runs[0].info.run_id} if runs else {})} if key else {}

    def _nest_children(self) -> None:
        """Nest children that came to MLflow, and perhaps to their end, before this run was there for them to find."""
        below = f"tags.`xlt.parent_key` = '{self.where['run_key']}'"
        for child in self.client.search_runs([self.experiment], below, max_results=50_000):
            if "mlflow.parentRunId" not in child.data.tags:
                self.client.set_tag(child.info.run_id, "mlflow.parentRunId", self.id)

    def _tag(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self.id, tags=[RunTag(key, value[:TAG_LIMIT]) for key, value in values.items()])

    def _log_open(self, records: Sequence[Record]) -> None:
        self.client.update_run(self.id, "RUNNING")
        self._tag(self._parent())

    def _log_params(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Param

        values = {key: value for record in records for key, value in record["values"].items()}
        values = {key: value for key, value in values.items() if key not in self._params}
        for key, value in values.items():
            if len(value) > PARAM_LIMIT:
                note = f"... (cut; all {len(value)} characters are in the artifact params/{key}.txt)"
                self.client.log_text(self.id, value, f"params/{key}.txt")
                values[key] = value[: PARAM_LIMIT - len(note)] + note
        self.client.log_batch(self.id, params=[Param(key, value) for key, value in values.items()])

    def _log_metrics(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, record["time"], record["step"])
            for record in records
            for key, value in record["values"].items()
            if (key, record["step"]) not in self._steps
        ]
        self.client.log_batch(self.id, metrics=metrics)

    def _log_tags(self, records: Sequence[Record]) -> None:
        self._tag({key: value for record in records for key, value in record["values"].items()})

    def _log_artifact(self, records: Sequence[Record]) -> None:
        (record,) = records
        path = self.folder / record["path"]
        if not path.exists():
            raise Refused(f"{path}: no such file or directory; put it back and run `xlt sync`")
        self.client.log_artifact(self.id, str(path))

    def _log_dataset(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        (record,) = records
        place = record["source"]
        kind, source = ("http", {"url": place}) if place.startswith(("http:", "https:")) else ("local", {"uri": place})
        profile = json.dumps(record["profile"]) if record["profile"] else None
        dataset = Dataset(record["name"], record["digest"], kind, json.dumps(source), profile=profile)
        self.client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", record["context"])])])

    def _log_finish(self, records: Sequence[Record]) -> None:
        # a request to create this run that was given up as lost, and came through after all, left an empty twin
        for twin in self._search(self.where["run_key"]):
            same = twin.info.start_time == self.where["since"] and not (twin.data.metrics or twin.data.params)
            if twin.info.run_id != self.id and same:
                self.client.delete_run(twin.info.run_id)
        self.end(records[-1]["status"], records[-1]["time"])

    def _log_model(self, records: Sequence[Record]) -> None:
        (record,) = records
        bundle = self.folder / record["path"]
        if not bundle.is_dir():
            raise Refused(f"{bundle}: no such directory; put the bundle back and run `xlt sync`")
        digest = bundle_digest(bundle)
        query = f"source_run_id = '{self.id}' AND tags.`xlt.bundle` = '{digest}'"
        found = self.client.search_logged_models([self.experiment], query)
        tags = {"xlt.bundle": digest}
        model = found[0] if found else self.client.create_logged_model(self.experiment, "model", self.id, tags)
        if model.status != "READY":
            self._upload(model, bundle, record)
            try:
                _ask(self.uri, f"models:/{model.model_id}", record["pairs"])
            except Refused:
                self.client.finalize_logged_model(model.model_id, "FAILED")
                raise
            self.client.finalize_logged_model(model.model_id, "READY")
        if record["name"]:
            self._register(model, digest, record["name"], record["alias"])

    def _upload(self, model: LoggedModel, bundle: Path, record: Record) -> None:
        """Log a bundle as MLflow's generic Python model: its files as they are and the code beside them, no pickle."""
        import mlflow
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model, ModelSignature
        from mlflow.types.schema import ColSpec, Schema

        card = Model(model.artifact_location, self.id, model_uuid=model.model_id, model_id=model.model_id)
        text = ColSpec("string")  # without a name, so that a list, a Series and a frame with any column name all fit
        with durable.scratch() as scratch:
            mlflow.pyfunc.save_model(
                f"{scratch}/model",
                loader_module=LOADER,
                data_path=str(bundle),
                code_paths=[str(PACKAGE)],
                signature=ModelSignature(Schema([text] * (2 if record["pairs"] else 1)), Schema([text])),
                input_example=_question(record["pairs"]),
                pip_requirements=requirements(),
                mlflow_model=card,
            )
            self.client.log_model_artifacts(model.model_id, f"{scratch}/model")
        outputs = self.client.get_run(self.id).outputs
        if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else ())]:
            self.client.log_outputs(self.id, [LoggedModelOutput(model.model_id, step=0)])

    def _register(self, model: LoggedModel, digest: str, name: str, alias: str | None) -> None:
        import mlflow

        versions = self.client.search_model_versions(f"name = '{name}' and run_id = '{self.id}'")
        same = [version for version in versions if version.tags.get("xlt.bundle") == digest]
        tags = {"xlt.bundle": digest}
        version = same[0] if same else mlflow.register_model(f"models:/{model.model_id}", name, tags=tags)
        # an alias moves to a version once: moved again, when all is sent again, it would oust a later champion
        if alias and version.tags.get("xlt.alias") != alias:
            self.client.set_registered_model_alias(name, alias, version.version)
            self.client.set_model_version_tag(name, version.version, "xlt.alias", alias)


def _ask(uri: str, model: str, pairs: bool) -> None:
    """Load a logged model in a process that has only what was logged; raise Refused unless it answers with a label."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join(one for one in paths if one != str(Path(__file__).parents[2]))
    with durable.scratch() as elsewhere:
        # MLflow downloads what it loads into a temporary folder, and leaves it there
        environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": path, "TMPDIR": str(elsewhere)}
        command = [sys.executable, "-P", "-c", ASK, model, json.dumps(_question(pairs))]
        answer = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    if answer.returncode:
        raise Refused(f"the logged model does not answer, so it was not registered: {answer.stderr.strip()[-700:]}")


def _question(pairs: bool) -> list[Any]:
    return [[QUESTION, QUESTION]] if pairs else [QUESTION]


def bundle_digest(folder: Path) -> str:
    """Return 32 hex digits that stand for the files of a bundle, their paths and contents: the tag `xlt.bundle`."""
    return durable.digest(folder)[:32]


def _artifacts(uri: str, folder: Path) -> str | None:
    """Choose where a new experiment keeps files: beside a SQLite database, beside the runs for other databases."""
    if uri.startswith(("http:", "https:", "databricks")):
        return None  # a server knows best
    database = tracking_uri.sqlite_file(uri)
    return ((database.parent if database else folder.parent) / "mlartifacts").as_uri()


def _connect(uri: str) -> None:
    """Connect to a database once, so that its error comes at once: MLflow tries again for an hour."""
    if uri.startswith(tracking_uri.DATABASES) and tracking_uri.sqlite_file(uri) is None:
        import sqlalchemy

        sqlalchemy.create_engine(uri).connect().close()


def _create_database(uri: str) -> None:
    """Create a SQLite database that is not there yet, whole: MLflow's own client cannot be relied on for it.

    Constructing a client creates the tables in some fifty steps, with no lock. Two that do so at once, or one that is
    killed at it, can leave a database that no client ever opens again. So one process at a time makes it elsewhere.
    """
    import mlflow

    database = tracking_uri.sqlite_file(uri)
    if database is None or database.exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with durable.locked(database.with_name(f"{database.name}.lock")):
        if database.exists():
            return
        draft = database.with_name(f".{database.name}.new")
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed, with its rollback journal
        draft.mkdir()
        mlflow.MlflowClient(uri.replace(str(database), str(draft / database.name)))
        (draft / database.name).replace(database)
        draft.rmdir()


class Refused(Exception):
    """A record, or a whole run, that no further attempt can deliver as things are."""
