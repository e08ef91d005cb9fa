"""What deploy/ holds for Kubernetes: fields that KubeRay has, commands that run, one image that has what they need."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve.settings import ServeArgs
from xlt_ray.config import load
from xlt_ray.search import space

ROOT = Path(__file__).parents[1]
KUBERAY, DOCKERFILE = ROOT / "deploy" / "kuberay", ROOT / "deploy" / "Dockerfile"
# Names of fields in the custom resource definitions of KubeRay 1.7 (ray.io/v1), where an object has others than these
# it refuses them; {} are objects of Kubernetes' own.
POD: dict[str, Any] = {"template": {}}
CLUSTER: dict[str, Any] = {
    "authOptions": {"enableK8sTokenAuth": None, "mode": ("disabled", "token"), "secretName": None},
    "autoscalerOptions": dict.fromkeys(
        ("args", "command", "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources",
         "securityContext", "volumeMounts")
    )
    | {"upscalingMode": ("Default", "Aggressive", "Conservative"), "version": ("v1", "v2")},
    **dict.fromkeys(("enableInTreeAutoscaling", "headServiceAnnotations", "managedBy", "rayVersion", "suspend")),
    **dict.fromkeys(("gcsFaultToleranceOptions", "networkPolicy", "tlsOptions", "upgradeStrategy")),
    "headGroupSpec": dict.fromkeys(
        ("enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template")
    ),
    "workerGroupSpecs": [
        dict.fromkeys(
            ("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "priority",
             "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend", "template")
        )
    ],
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "RayJob": dict.fromkeys(
        ("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
         "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata",
         "preRunningDeadlineSeconds", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode",
         "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished")
    )
    | {"rayClusterSpec": CLUSTER},
    "RayService": dict.fromkeys(
        ("deploymentUnhealthySecondThreshold", "excludeHeadPodFromServeSvc", "managedBy",
         "rayClusterDeletionDelaySeconds", "serveConfigV2", "serveService", "serviceUnhealthySecondThreshold",
         "suspend", "upgradeStrategy")
    )
    | {"rayClusterConfig": CLUSTER},
}  # fmt: skip


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text(encoding="utf-8")))


def unknown(value: Any, fields: Any, place: str) -> Iterator[str]:
    """Yield the places of fields that KubeRay does not know, and of values that it does not take."""
    if isinstance(fields, tuple) and value not in fields:
        yield f"{place}: {value!r}"
    elif isinstance(fields, list):
        for number, one in enumerate(value):
            yield from unknown(one, fields[0], f"{place}[{number}]")
    elif isinstance(fields, dict) and fields:
        for key, inner in value.items():
            if key not in fields:
                yield f"{place}.{key}"
            else:
                yield from unknown(inner, fields[key], f"{place}.{key}")


def cluster(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["spec"].get("rayClusterSpec") or document["spec"]["rayClusterConfig"]
    return found


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster(document)
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


RESOURCES = ("train.yaml", "tune.yaml", "serve.yaml")


@pytest.mark.parametrize("name", RESOURCES)
def test_kuberay_knows_every_field(name: str) -> None:
    (document,) = documents(name)
    assert document["apiVersion"] == "ray.io/v1" and set(document) == {"apiVersion", "kind", "metadata", "spec"}
    assert list(unknown(document["spec"], KINDS[document["kind"]], "spec")) == []
    document["spec"]["entrypont"] = cluster(document)["authOptions"]["mode"] = "on"
    wrong = list(unknown(document["spec"], KINDS[document["kind"]], "spec"))
    assert len(wrong) == 2, "a slip of the pen is found"


@pytest.mark.parametrize("name", RESOURCES)
def test_pods_are_unprivileged_share_a_volume_and_know_where_mlflow_is(name: str) -> None:
    (document,) = documents(name)
    shared = {one["kind"]: one for one in documents("shared.yaml") if one["kind"] != "Secret"}
    secrets = {
        one["metadata"]["name"]: one["stringData"] for one in documents("shared.yaml") if one["kind"] == "Secret"
    }
    assert cluster(document)["authOptions"] == {"mode": "token", "secretName": "xlt-ray-token"}
    assert set(secrets["xlt-ray-token"]) == {"auth_token"}, "the key that KubeRay reads"
    assert "MLFLOW_TRACKING_URI" in secrets["xlt-mlflow"]
    for pod in pods(document):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
        assert claim == shared["PersistentVolumeClaim"]["metadata"]["name"]
        assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]
        assert container["envFrom"][0]["secretRef"]["name"] in secrets
        assert container["resources"]["limits"] == container["resources"]["requests"]
    text = (KUBERAY / name).read_text(encoding="utf-8")
    assert re.search(r"image: &image \S+  # EDIT", text) and "latest" not in text


def test_a_head_does_no_work_and_groups_come_and_go() -> None:
    for name in RESOURCES:
        spec = cluster(documents(name)[0])
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0" and spec["enableInTreeAutoscaling"]
        assert [group["groupName"] for group in spec["workerGroupSpecs"]] == ["cpu", "gpu"]
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            assert group["template"]["spec"]["tolerations"], "machines that are cheaper and may be taken away"
        gpu = spec["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert gpu["nvidia.com/gpu"] == "1"
    assert cluster(documents("train.yaml")[0]) == cluster(documents("tune.yaml")[0])


@pytest.mark.parametrize("verb", ["train", "tune"])
def test_the_command_of_a_job_is_one_that_runs(verb: str) -> None:
    (document,) = documents(f"{verb}.yaml")
    python, script, config, *overrides = shlex.split(document["spec"]["entrypoint"])
    place = "/opt/xlt/"
    assert python == "python" and (ROOT / script.removeprefix(place)).is_file() and script.endswith(f"{verb}.py")
    file = str(ROOT / config.removeprefix(place))
    values = [one.replace("$MLFLOW_TRACKING_URI", "http://mlflow:5000") for one in overrides]
    experiment = load(file, values) if verb == "train" else space.load(file, values).base
    assert experiment.storage == "/shared/runs" and experiment.tracking.uri == "http://mlflow:5000"
    worker = cluster(document)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert experiment.resources.cpus_per_worker <= float(worker["resources"]["limits"]["cpu"])


def test_the_server_is_one_that_serve_takes() -> None:
    (document,) = documents("serve.yaml")
    config = yaml.safe_load(document["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "serve.app:build"
    args = ServeArgs.model_validate(application.args)
    assert args.scaling.min_replicas == 2
    assert f"{document['metadata']['name']}-serve-svc" in args.allowed_hosts


def test_the_image_has_what_its_commands_need(tmp_path: Path) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    stages = text.split("\nFROM ")[1:]
    assert len(stages) == 2 and "USER 1000" in stages[1] and "HEALTHCHECK" in stages[1]
    copied = [shlex.split(line)[1:] for line in stages[0].splitlines() if line.startswith("COPY ")]
    for *sources, target in copied:
        for source in sources:
            place = tmp_path / target / Path(source).name if target == "./" else tmp_path / target
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, place)
    (command,) = re.findall(r"^RUN (make .*)$", stages[0], re.MULTILINE)
    asked = shlex.split(command.replace("$TORCH_INDEX", "https://example.org/cpu").replace("/opt/venv", "venv"))
    planned = subprocess.run([*asked, "--dry-run"], cwd=tmp_path, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    assert "--index-url https://example.org/cpu" in planned.stdout and ".[aws]" in planned.stdout
    listed = subprocess.run(
        [sys.executable, "-c", "import serve.app, xlt_ray; from xlt_ray.cli import main; main()", "catalogue"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert listed.returncode == 0 and "techniques" in listed.stdout, listed.stderr
