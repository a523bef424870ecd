"""Whose code runs is not for a job file to say: addresses and images that only it names."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import each_of, gaussian, store

from dlscale.batch.document import Document, read_document, set_value
from dlscale.batch.generate import parse_generate
from dlscale.batch.prepare import prepare
from dlscale.batch.run import create, reopen
from dlscale.batch.spec import consent, parse_spec
from dlscale.batch.spec.consent import require_consent
from dlscale.batch.spec.sections import ClusterSpec
from dlscale.batch.workspace import Workspace
from dlscale.errors import SpecError

REMOTE = "tcp://10.99.0.1:8786"
HEAD = "kind: svd\ninput: {matrix: a.zarr}\nparams: {n_components: 2}\n"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A port of this machine that tells whether somebody came."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        yield server


def address_of(listener: socket.socket) -> str:
    return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def require(document: Document, *, only_looks: bool = False) -> None:
    require_consent(parse_spec(document).cluster, document, only_looks=only_looks)


@pytest.mark.parametrize(
    "address",
    [REMOTE, "tls://10.99.0.1:8786", "tcp://cluster.example:8786", "tcp://[2001:db8::1]:8786", "tcp://127.0.0.1.example:1"],
)
def test_an_address_that_only_the_file_names_is_refused(address: str) -> None:
    for only_looks in (False, True):
        with pytest.raises(SpecError, match=r"named by the job file alone.*--cluster"):
            require(read_document(HEAD + f"cluster: '{address}'\n"), only_looks=only_looks)


@pytest.mark.parametrize(
    "place",
    [
        "127.0.0.1/.cluster.example:8786",
        "127.0.0.1?.cluster.example:8786",
        "127.0.0.1#.cluster.example:8786",
        "cluster.example\\@127.0.0.1:8786",
        "x:8786@127.0.0.1:8786",
        "local\thost:8786",
        "\u2105:1",
        "127.0.0.1",
        "127.0.0.1:",
    ],
)
def test_an_address_that_can_be_read_in_two_ways_is_no_address(place: str) -> None:
    """What `urlsplit` takes for this machine, the system's resolver would take for another one."""
    with pytest.raises(SpecError, match=r"cluster: got .* allowed: local, threads, mpi, tcp://host:port"):
        parse_spec(
            read_document(
                {"kind": "svd", "input": {"matrix": "a.zarr"}, "params": {"n_components": 2}, "cluster": f"tcp://{place}"}
            )
        )


def test_a_plan_connects_to_nothing_that_only_the_file_names(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store(tmp_path / "a.zarr", gaussian(20, 4))
    document = read_document(HEAD + f"cluster: {address_of(listener)}\n")
    with pytest.raises(SpecError, match=r"spec:4: cluster: tcp://127\.0\.0\.1:\d+ is named by the job file alone.*--worker-memory"):
        prepare(parse_spec(document), document, Workspace(tmp_path / "w"), only_looks=True)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_whoever_names_it_may_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    written = read_document(HEAD + f"cluster: {REMOTE}\n")
    for document in (
        set_value(read_document(HEAD), ["cluster"], REMOTE, "--cluster"),
        read_document(HEAD, [f"cluster={REMOTE}"]),
        read_document({"kind": "svd", "input": {"matrix": "a.zarr"}, "cluster": REMOTE}),
    ):
        require(document, only_looks=True)
    for listed in (REMOTE, "10.99.0.1", f"tcp://other:1, {REMOTE}", f"other {REMOTE}"):
        monkeypatch.setenv(consent.TRUSTED, listed)
        require(written, only_looks=True)
    for listed in ("", "tcp://10.99.0.1:1", "10.99.0.10"):
        monkeypatch.setenv(consent.TRUSTED, listed)
        with pytest.raises(SpecError):
            require(written)


def test_a_run_goes_to_ones_own_scheduler_on_this_machine(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    for host in ("127.0.0.1", "localhost"):
        require(read_document(HEAD + f"cluster: tcp://{host}:{port}\n"))


@pytest.mark.skipif(os.getuid() != 0, reason="takes root to be another user")
def test_a_scheduler_of_another_user_of_this_machine_is_a_strangers() -> None:
    program = (
        "import os, socket, sys; os.setuid(65534); s = socket.create_server(('127.0.0.1', 0)); "
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        with pytest.raises(SpecError, match="named by the job file alone"):
            require(read_document(HEAD + f"cluster: tcp://127.0.0.1:{port}\n"))
        other.kill()


def test_a_stopped_job_does_not_go_back_to_a_remote_cluster_by_itself(tmp_path: Path) -> None:
    store(tmp_path / "a.zarr", gaussian(20, 4))
    root = Workspace(tmp_path / "w")
    document = read_document(
        {"kind": "svd", "input": {"matrix": tmp_path / "a.zarr"}, "params": {"n_components": 2}, "cluster": "threads"}
    )
    prepared = prepare(parse_spec(document), document, root)
    job = root.new_job("svd")
    create(job, replace(prepared, data=prepared.data | {"cluster": REMOTE}), state="interrupted")
    assert reopen(job, root, cluster="threads").facts.kind == "threads"
    with pytest.raises(SpecError, match="named by the job file alone"):
        reopen(job, root)


def test_a_container_image_is_code_too(monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEAD + "cluster: {type: kubernetes, workers: 1, threads: 1, memory: 2GB, image: evil.example/x@sha256:0}\n"
    require(read_document(text), only_looks=True)
    with pytest.raises(SpecError, match=r"the image evil\.example/x@sha256:0 is named by the job file alone"):
        require(read_document(text))
    with pytest.raises(SpecError, match="image"):
        require(read_document(text, ["cluster.memory=4GB"]))
    require(read_document(text, ["cluster.image=mine"]))
    monkeypatch.setenv(consent.TRUSTED, "evil.example/x@sha256:0")
    require(read_document(text))


def test_generate_asks_too() -> None:
    text = f"shape: [10, 4]\nspectrum: flat\ncluster: {REMOTE}\n"
    with pytest.raises(SpecError, match="spec:3: cluster"):
        parse_generate(read_document(text))
    parse_generate(read_document(text, ["cluster=threads"]))


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
@pytest.mark.parametrize("key", ["queue", "account", "walltime", "interface"])
@each_of(
    value=[
        "x\ntouch /tmp/x",
        "x\r",
        "x\n",
        "x y",
        "$(id)",
        "`id`",
        "x;id",
        "x|id",
        "x&",
        "'x",
        '"x',
        "x\\",
        "#x",
        "-x",
        "--wrap=id",
        "",
        "é",
    ]
)
def test_nothing_but_words_goes_into_a_batch_script(kind: str, key: str, value: str) -> None:
    asked = {"type": kind, "workers": 1, "threads": 1, "memory": "2GB", key: value}
    with pytest.raises(SpecError, match=rf"cluster\.{key}"):
        parse_spec(read_document({"kind": "svd", "input": {"matrix": "a.zarr"}, "cluster": asked}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("queue", "gpu-long,short"),
        ("account", "proj_12@site"),
        ("walltime", "1-12:00:00"),
        ("walltime", "90"),
        ("interface", "ib0"),
    ],
)
def test_ordinary_words_do(key: str, value: str) -> None:
    spec = parse_spec(read_document({"kind": "svd", "input": {"matrix": "a.zarr"}, "cluster": {"type": "slurm", key: value}}))
    assert isinstance(spec.cluster, ClusterSpec)
    assert getattr(spec.cluster, key) == value


@pytest.mark.parametrize("value", ["a/b c", "A_B", "x\n", "-x", "x" * 64, "$(id)"])
def test_a_namespace_is_a_label(value: str) -> None:
    with pytest.raises(SpecError, match=r"cluster\.namespace"):
        parse_spec(read_document({"kind": "svd", "input": {"matrix": "a"}, "cluster": {"type": "kubernetes", "namespace": value}}))
