from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml
from jobs_here import DEPLOY
from manifests import SCHEMAS, faults

from dlscale.cli.main import commands
from dlscale.service.routes import state

FOLDER = DEPLOY / "kubernetes"
NAMES = ("cluster.yaml", "job.yaml")


def load(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


def part(schema: dict, *names: str) -> dict:
    """A part of a schema."""
    for name in names:
        while "$ref" in schema:
            schema = SCHEMAS["$defs"][schema["$ref"].rpartition("/")[2]]
        schema = schema["properties"][name]
    return schema


#: Of every pod and of every service: the operator's schemas hold them.
POD = part(SCHEMAS["DaskCluster"], "spec", "worker", "spec")
SERVICE = part(SCHEMAS["DaskCluster"], "spec", "scheduler", "service")


def spec_faults(manifest: dict) -> list[str]:
    """A manifest without what the API server itself adds and checks."""
    return [fault.removeprefix(".") for fault in faults({"spec": manifest["spec"]}, SCHEMAS[manifest["kind"]])]


@pytest.mark.parametrize("name", NAMES)
def test_manifest_is_what_the_operator_takes(name):
    manifest = load(name)
    assert manifest["apiVersion"] == "kubernetes.dask.org/v1"
    assert spec_faults(manifest) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda spec: spec["worker"].pop("replicas") and spec["worker"].update(replica=4), "spec.worker.replica: unknown field"),
        (lambda spec: spec["worker"].update(replicas="4"), "spec.worker.replicas: must be of type integer; got '4'"),
        (lambda spec: spec["scheduler"].pop("service"), "spec.scheduler.service: missing"),
        (lambda spec: spec["worker"]["spec"]["containers"][0].update(arg=[]), "spec.worker.spec.containers[0].arg: unknown field"),
        (lambda spec: spec["worker"]["spec"]["containers"][0].pop("name"), "spec.worker.spec.containers[0].name: missing"),
    ],
)
def test_a_wrong_manifest_is_found(change, fault):
    manifest = copy.deepcopy(load("cluster.yaml"))
    change(manifest["spec"])
    assert fault in spec_faults(manifest)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_manifest_agree(name):
    manifest = load(name)
    cluster = manifest["spec"] if manifest["kind"] == "DaskCluster" else manifest["spec"]["cluster"]["spec"]
    pods = [cluster["worker"]["spec"], cluster["scheduler"]["spec"]]
    if manifest["kind"] == "DaskJob":
        pods.append(manifest["spec"]["job"]["spec"])
    claim = load("volume.yaml")["metadata"]["name"]
    for pod in pods:
        # All see the shared volume at the same place, from the same image.
        assert [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]] == [claim]
        for container in pod["containers"]:
            assert container["volumeMounts"] == [{"name": pod["volumes"][0]["name"], "mountPath": "/work"}]
            assert container["image"] == "dlscale:latest"
    worker = cluster["worker"]["spec"]["containers"][0]
    arguments = dict(zip(worker["args"][::2], worker["args"][1::2], strict=False))
    assert arguments["--nthreads"] == worker["resources"]["limits"]["cpu"]
    assert re.sub("B$", "", arguments["--memory-limit"]) == worker["resources"]["limits"]["memory"]
    # The operator gives services and workers the name of the cluster; that of a job's cluster is the job's.
    assert cluster["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == manifest["metadata"]["name"]
    ports = {port["name"]: port["containerPort"] for port in cluster["scheduler"]["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"]: port["port"] for port in cluster["scheduler"]["service"]["ports"]} == ports


def test_the_server_is_what_kubernetes_takes_and_dlscale_serves(tmp_path):
    deployment, service = yaml.safe_load_all((FOLDER / "service.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    assert (deployment["apiVersion"], service["apiVersion"]) == ("apps/v1", "v1")
    assert list(faults(pod, POD)) == []
    assert list(faults(service["spec"], SERVICE)) == []
    pod_of_another = copy.deepcopy(pod)
    pod_of_another["containers"][0]["livenessProbe"]["httpget"] = {}
    assert ".containers[0].livenessProbe.httpget: unknown field" in list(faults(pod_of_another, POD))

    # Its parts agree: labels, ports, volumes, the cluster, and the options of the command.
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert (service["spec"]["ports"][0]["targetPort"], service["spec"]["ports"][0]["port"]) == (port["name"], port["containerPort"])
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert claims == [load("volume.yaml")["metadata"]["name"]]
    command, *options = container["args"]
    given = commands.commands[command].make_context(command, options).params
    assert (given["port"], given["names"][0]) == (port["containerPort"], service["metadata"]["name"])
    assert given["cluster"] == f"tcp://{load('cluster.yaml')['metadata']['name']}-scheduler:8786"
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert str(given["token_file"].parent) in mounted
    assert any(Path(given["workspace"]).is_relative_to(place) for place in mounted)
    paths = {container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")}
    assert paths <= {route.path for route in state.router.routes}
