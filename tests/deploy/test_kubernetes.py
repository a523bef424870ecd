from __future__ import annotations

import copy
import re

import pytest
import yaml
from jobs_here import DEPLOY
from manifests import SCHEMAS, faults

FOLDER = DEPLOY / "kubernetes"
NAMES = ("cluster.yaml", "job.yaml")


def load(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text())


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
