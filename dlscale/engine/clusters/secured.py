"""Dask clusters that only their own processes can talk to: TLS with a key made for one cluster, and no web pages.

Whoever reaches a scheduler or a worker of Dask can run code in it. Every connection of a cluster that is started here is
therefore encrypted, and both of its ends show that they hold the cluster's key, which never leaves the memory of its processes.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

from distributed import LocalCluster, Scheduler, Worker
from distributed.security import Security

from dlscale.engine.clusters.peers import is_foreign

#: No job runs for longer than this.
_LIFE = datetime.timedelta(days=3650)
#: Between two messages by which a worker tells its scheduler that it lives, and what it has: each takes several milliseconds of
#: both. Where workers are lost, their connections are, which is known at once.
_HEARTBEAT_SECONDS = 2.0
#: What a scheduler asks itself four times a second: whether it has been idle, or without workers, for as long as would end it.
_IDLE_QUESTIONS = ("idle-timeout", "no-workers-timeout")
#: Clocks of hosts differ.
_CLOCKS = datetime.timedelta(days=1)


def make_security() -> Security:
    """TLS of a new cluster: one key for the scheduler, its workers and its clients.

    Notes
    -----
    `distributed.security.Security.temporary` does the same with an RSA key, which takes a tenth of a second to make.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dlscale")])
    today = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), today - _CLOCKS, today + _LIFE
    ).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    return _same_for_all(certificate, secret)


def in_files(security: Any, folder: Path) -> Security:
    """The same TLS with its certificate and key in files that only their owner can read, for processes elsewhere."""
    paths = []
    for name, pem in (("certificate.pem", security.tls_worker_cert), ("key.pem", security.tls_worker_key)):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(pem)
        paths.append(str(folder / name))
    return _same_for_all(*paths)


def _same_for_all(certificate: str, key: str) -> Security:
    """TLS with one certificate and key, as PEM or the paths of files, for every role."""
    roles = ("client", "scheduler", "worker")
    fields = {f"tls_{role}_{what}": value for role in roles for what, value in (("cert", certificate), ("key", key))}
    return Security(require_encryption=True, tls_ca_file=certificate, **fields)  # type: ignore[no-untyped-call]


class _NoPages:
    """Dask's nodes serve web pages to whoever asks, even without a dashboard; these do not."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        pass


class _Unhurried(Scheduler):
    """A scheduler of one job, which ends it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for name in _IDLE_QUESTIONS:
            self.periodic_callbacks.pop(name, None)


class ClosedScheduler(_NoPages, _Unhurried):
    """A scheduler without an HTTP server."""


class ClosedWorker(_NoPages, Worker):
    """A worker without an HTTP server."""

    async def heartbeat(self) -> None:
        await super().heartbeat()
        timer = self.periodic_callbacks["heartbeat"]
        timer.callback_time = max(timer.callback_time, 1e3 * _HEARTBEAT_SECONDS)


class OwnScheduler(_Unhurried):
    """A scheduler with the pages of Dask's dashboard for this user: connections of others are closed unheard."""

    def start_http_server(self, *arguments: Any, **options: Any) -> None:
        super().start_http_server(*arguments, **options)  # type: ignore[no-untyped-call]
        serve = self.http_server.handle_stream

        def serve_own(stream: Any, address: Any) -> None:
            if is_foreign(stream.socket):
                stream.close()
            else:
                serve(stream, address)

        self.http_server.handle_stream = serve_own  # type: ignore[method-assign]


class ClosedCluster(LocalCluster):
    """A cluster whose scheduler has no HTTP server, unless it was asked for a dashboard."""

    async def _start(self) -> None:
        has_pages = self.scheduler_spec["options"]["dashboard"]
        self.scheduler_spec = {**self.scheduler_spec, "cls": OwnScheduler if has_pages else ClosedScheduler}
        await super()._start()  # type: ignore[no-untyped-call]
