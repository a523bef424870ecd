"""The image's file: built and run where the machine has a daemon for it, and read line by line everywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator

import pytest
import yaml
from jobs_here import DEPLOY, ROOT

FILE = DEPLOY / "container" / "Containerfile"
NIGHT = int(os.environ.get("DLSCALE_CHAOS_RUNS", "1")) >= 10
INSTRUCTIONS = {"FROM", "COPY", "RUN", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction and what it is given, lines that go on put together."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        name, _, rest = line.partition(" ")
        yield name, " ".join(rest.split())


def faults(text: str) -> list[str]:
    """What would keep the image from being built, or let it run as it should not."""
    found = list(instructions(text))
    given = {name: [rest for each, rest in found if each == name] for name in INSTRUCTIONS}
    said = [f"{name}: no instruction" for name, _ in found if name not in INSTRUCTIONS]
    said += ["FROM: first, once, with a tag"] * (found[0][0] != "FROM" or not re.fullmatch(r"[\w./-]+:[\w.-]+", found[0][1]))
    said += [f"COPY: no {path}" for rest in given["COPY"] for path in rest.split()[:-1] if not (ROOT / path).exists()]
    said += [f"{name}: not in exec form" for name in ("ENTRYPOINT", "CMD") for rest in given[name] if not is_list(rest)]
    said += ["USER: the last one must not be root"] * (given["USER"][-1:] in ([], ["root"], ["0"]))
    for step in (part.strip() for rest in given["RUN"] for part in rest.split("&&")):
        if step.startswith("apt-get install"):
            said += [f"{step}: asks"] * ("-y" not in step.split())
            said += [f"{step}: installs what it need not"] * ("--no-install-recommends" not in step)
        if step.startswith("pip install"):
            said += [f"{step}: leaves its cache"] * ("--no-cache-dir" not in step)
            said += [f"{step}: not the tested versions"] * ("-c /source/constraints.txt" not in step)
            said += [f"{step}: no extra {name}" for name in re.search(r"\[([\w,]*)\]", step)[1].split(",") if name not in extras()]
    said += ["RUN: leaves the lists of packages"] * ("rm -rf /var/lib/apt/lists/*" not in " ".join(given["RUN"]))
    return said


def is_list(text: str) -> bool:
    try:
        return all(isinstance(item, str) for item in json.loads(text))
    except ValueError:
        return False


def extras() -> dict[str, list[str]]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def test_the_file_is_as_it_should_be() -> None:
    text = FILE.read_text()
    assert faults(text) == []
    found = list(instructions(text))
    version = re.search(r"python:3\.(\d+)", found[0][1])
    assert version
    assert f">=3.{version[1]}" in (ROOT / "pyproject.toml").read_text().replace(" ", "")
    # What Kubernetes is told of the image, and what dlscale finds in it.
    assert ("USER", "dlscale") in found
    (user,) = [rest for name, rest in found if "useradd" in rest]
    deployment = next(yaml.safe_load_all((DEPLOY / "kubernetes" / "service.yaml").read_text()))
    assert f"--uid {deployment['spec']['template']['spec']['securityContext']['runAsUser']} " in user
    (installs,) = re.findall(r"/source\[([\w,]*)\]", text)
    assert {"mpi", "formats", "serve"} <= set(installs.split(","))
    assert json.loads(dict(found)["ENTRYPOINT"])[-1] == "dlscale"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("FROM python:3.11-slim", "FROM python"), "FROM: first, once, with a tag"),
        (("constraints.txt /source/", "constraint.txt /source/"), "COPY: no constraint.txt"),
        (("USER dlscale", "USER root"), "USER: the last one must not be root"),
        (('CMD ["--help"]', "CMD --help"), "CMD: not in exec form"),
        (("formats,serve", "formats,server"), "no extra server"),
        (("WORKDIR", "WORKDIRECTORY"), "WORKDIRECTORY: no instruction"),
        (("--no-cache-dir ", ""), "leaves its cache"),
    ],
)
def test_a_fault_of_the_file_is_found(change: tuple[str, str], fault: str) -> None:
    text = FILE.read_text()
    assert change[0] in text
    assert any(fault in said for said in faults(text.replace(*change)))


def runtime() -> str | None:
    """A program that builds and runs images here."""
    for name in ("podman", "docker"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True, timeout=60, check=False).returncode == 0:
            return name
    return None


@pytest.mark.skipif(not NIGHT, reason="takes minutes and the network; set DLSCALE_CHAOS_RUNS=10 or more")
@pytest.mark.timeout(1800)
def test_the_image_is_built_and_runs() -> None:
    program = runtime()
    if program is None:
        pytest.skip("neither Podman nor Docker runs here")
    subprocess.run([program, "build", "-t", "dlscale-tested", "-f", str(FILE), str(ROOT)], check=True, timeout=1500)
    ran = subprocess.run(
        [program, "run", "--rm", "dlscale-tested", "--version"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "dlscale" in ran.stdout
