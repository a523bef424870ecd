"""A planted password and a planted signature: in no file of a workspace, in no output; and a stopped job asks for them again."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import yaml
import zarr
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem

import dlscale
from dlscale.batch.document import read_document
from dlscale.batch.prepare import prepare
from dlscale.batch.run import reopen, resume
from dlscale.batch.spec.secrets import restore_secrets, secret_environment
from dlscale.batch.sweeps import running
from dlscale.batch.sweeps.planning import describe, members_of, new_sweep, plan_all
from dlscale.batch.workspace import Heartbeat, Workspace
from dlscale.cli.main import commands
from dlscale.errors import DlscaleError, SpecError
from dlscale.showing import shown, visible, without_address, without_secrets

pytestmark = pytest.mark.usefixtures("drawn_reports")

SECRET = "S3CRET"


class Vault(MemoryFileSystem):
    """Stands for a server: the same objects, whatever user, password and query are in the URL."""

    protocol = "vault"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("vault://").split("@")[-1].partition("?")[0].strip("/")


@pytest.fixture
def vault() -> Iterator[Vault]:
    fsspec.register_implementation("vault", Vault, clobber=True)
    A = np.random.default_rng(0).standard_normal((60, 4))
    zarr.create_array(zarr.storage.FsspecStore.from_url("vault://host/a.zarr"), data=A, chunks=(20, 4), compressors=None)
    data = io.BytesIO()
    np.save(data, A)
    files = Vault()
    files.pipe("/host/a.npy", data.getvalue())
    yield files
    Vault.store.clear()


def places_of(secret: str, folder: Path) -> list[str]:
    """The files that hold a secret, or are named by it."""
    found = [path for path in folder.rglob("*") if secret in path.name or (path.is_file() and secret.encode() in path.read_bytes())]
    return sorted(str(path.relative_to(folder)) for path in found)


SOURCES = {
    "matrix": f"vault://alice:{SECRET}@host/a.zarr",
    "import": {"import": f"vault://host/a.npy?X-Amz-Credential=me&X-Amz-Signature={SECRET}"},
}


def job(source: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "pca", "input": {"matrix": source}, "params": {"n_components": 2}, "cluster": "threads", **more}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_secret_is_in_no_file_and_no_output(source: Any, vault: Vault, tmp_path: Path) -> None:
    spec, workspace = tmp_path / "job.yaml", tmp_path / "workspace"
    spec.write_text(yaml.safe_dump(job(source)))
    outputs = []
    for arguments in (
        ["plan", str(spec)],
        ["plan", str(spec), "--json"],
        ["run", str(spec), "--json"],
        ["status"],
        ["logs"],
        ["report"],
    ):
        ended = CliRunner().invoke(commands, [*arguments, "--workspace", str(workspace)])
        assert ended.exit_code == 0, ended.output
        outputs.append(ended.output)
    result = json.loads(outputs[2].strip().splitlines()[-1])["result"]
    outputs.append(CliRunner().invoke(commands, ["info", result]).output)
    outputs += [CliRunner().invoke(commands, [verb, str(SOURCES["matrix"])]).output for verb in ("info", "verify", "plan")]
    assert places_of(SECRET, workspace) == []
    assert not [output for output in outputs if SECRET in output]
    assert "***" in (Workspace(workspace).find(None).folder / "spec.yaml").read_text()


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_secret_is_in_no_file_and_no_output_of_what_fails(source: Any, vault: Vault, tmp_path: Path) -> None:
    spec, workspace = tmp_path / "job.yaml", tmp_path / "workspace"
    for path, data in (("/host/a.zarr/c/1/0", b"short"), ("/host/a.npy", b"nothing of NumPy")):
        vault.pipe(path, data)
    spec.write_text(yaml.safe_dump(job(source)))
    for arguments in (
        ["run", str(spec), "--workspace", str(workspace)],
        ["run", str(spec), "--json", "--workspace", str(workspace)],
    ):
        ended = CliRunner().invoke(commands, arguments)
        assert ended.exit_code in (1, 2)
        assert SECRET not in ended.output
    assert places_of(SECRET, workspace) == []


def test_a_stopped_job_asks_for_its_url_again(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, url = Workspace(tmp_path), SOURCES["matrix"]

    def fail(event: dict[str, Any]) -> None:
        if event["event"] == "pass_finished":
            raise OSError(f"no answer from {url}")

    with pytest.raises(OSError, match="no answer"):
        dlscale.run(job(url), workspace=tmp_path, listener=fail)
    stopped = root.find(None)
    assert places_of(SECRET, tmp_path) == []
    with pytest.raises(
        SpecError, match=r"input\.matrix: the password or signature in vault://\*\*\*@host/a\.zarr .* DLSCALE_INPUT_MATRIX"
    ):
        reopen(stopped, root)
    monkeypatch.setenv("DLSCALE_INPUT_MATRIX", f"vault://alice:{SECRET}@elsewhere/a.zarr")
    with pytest.raises(SpecError, match="another URL"):
        reopen(stopped, root)
    monkeypatch.setenv("DLSCALE_INPUT_MATRIX", url)
    result = resume(stopped, reopen(stopped, root))
    assert result.state == "succeeded"
    assert places_of(SECRET, tmp_path) == []


def test_a_driver_is_told_by_its_environment() -> None:
    data = {
        "input": {"matrix": "vault://a:b@host/x", "rhs": {"import": "https://h/y.npy?sig=z"}, "model": "m.zarr", "seen": "s3://c/d"}
    }
    assert secret_environment(data) == {"DLSCALE_INPUT_MATRIX": "vault://a:b@host/x", "DLSCALE_INPUT_RHS": "https://h/y.npy?sig=z"}


def test_a_new_signature_of_the_same_object_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = read_document({"input": {"rhs": {"import": "https://h/y.npy?Expires=1&Signature=***"}}})
    monkeypatch.setenv("DLSCALE_INPUT_RHS", "https://h/y.npy?Expires=2&Signature=new")
    assert restore_secrets(stored).data["input"]["rhs"] == {"import": "https://h/y.npy?Expires=2&Signature=new"}


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("https://u:p@host/x", "https://***@host/x"),
        ("https://token@host/x", "https://***@host/x"),
        ("https://u:p@ss@host/x", "https://***@host/x"),
        ("https://u:p/s@host/x", "https://***@host/x"),
        ("https://u:p w@host/x and https://u:q@h", "https://***@host/x and https://***@h"),
        ("tcp://host:8786 told me@host", "tcp://host:8786 told me@host"),
        ("http:/u:p@host/x?sig=ab is absent", "http:/***@host/x?sig=*** is absent"),
        ("/data/job.yaml:/home/a@b", "/data/job.yaml:/home/a@b"),
        ("https://h/x?%73ig=ab", "https://h/x?%73ig=***"),
        ("http://host:8080/a@b.npy", "http://host:8080/a@b.npy"),
        ("s3://bucket/a@b.zarr", "s3://bucket/a@b.zarr"),
        ("abfs://container@account.net/x", "abfs://container@account.net/x"),
        ("sftp://me@host/x", "sftp://me@host/x"),
        ("sftp://me:word@host/x", "sftp://***@host/x"),
        ("simplecache::https://u:p@h/x.zip", "simplecache::https://***@h/x.zip"),
        ("https://h/x?X-Amz-Date=1&X-Amz-Signature=ab%2F", "https://h/x?X-Amz-Date=***&X-Amz-Signature=***"),
        ("https://h/x?sv=2024&sr=b&sig=a%2Bb%3D", "https://h/x?sv=2024&sr=b&sig=***"),
        ("https://h/x?GoogleAccessId=a&Expires=1&Signature=b", "https://h/x?GoogleAccessId=***&Expires=1&Signature=***"),
        ("https://h/x?version=3&t=0123456789abcdefghijkl", "https://h/x?version=3&t=***"),
        ("https://h/x#access_token=y", "https://h/x#access_token=***"),
        ("url=URL('https://h/x?token=abc'), or https://a:b@h/y.", "url=URL('https://h/x?token=***'), or https://***@h/y."),
        ("no URL: a@b ?sig=1", "no URL: a@b ?sig=1"),
    ],
)
def test_what_opens_a_url_is_hidden_and_the_rest_is_not(text: str, safe: str) -> None:
    assert without_secrets(text) == safe
    assert without_secrets(safe) == safe
    assert str(DlscaleError(text)) == safe


def test_a_url_without_its_address_parts() -> None:
    assert without_address("https://u:p@h/x.npy?sig=1#y") == without_address("https://***@h/x.npy?sig=2") == "https://h/x.npy"


@pytest.mark.parametrize(
    "character",
    ["\x1b", "\x07", "\r", "\x08", "\x7f", "\x9b", "\u202e", "\u2066", "\u061c", "\u200b", "\ufeff", "\u2028", "\ud800"],
)
def test_what_a_terminal_obeys_is_written_out(character: str) -> None:
    assert visible(f"a{character}b\n\tc").isascii()
    assert shown(f"{character}https://a:b@h") == visible(character) + "https://***@h"


def test_a_sweep_over_urls_keeps_no_password(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlscale.batch.sweeps.running.start_detached", lambda *_: Heartbeat("host", 0, 0.0, 0.0))
    urls = [f"vault://me:{SECRET}@host/a.zarr", "vault://host/a.zarr"]
    spec = {"kind": "svd", "params": {"n_components": 2}, "cluster": "threads", "matrix": {"input.matrix": urls}}
    document, root = read_document(spec), Workspace(tmp_path / "ws")

    def submit() -> None:
        planned = plan_all(members_of(document), lambda member: prepare(member.spec, member.document, root))
        assert SECRET not in str(describe(document, planned))
        running.submit(root, new_sweep(root, document, planned), planned)

    submit()
    assert len(list((tmp_path / "ws" / "jobs").iterdir())) == 2
    assert places_of(SECRET, tmp_path) == []
    urls.append(f"vault://me:another-{SECRET}@host/a.zarr")
    document = read_document(spec)
    with pytest.raises(SpecError, match="submit these jobs one by one") as raised:
        submit()
    assert SECRET not in str(raised.value)
    assert len(list((tmp_path / "ws" / "jobs").iterdir())) == 2
