"""A client of a Dask scheduler, and what it says."""

from __future__ import annotations

import logging
import socket
from typing import Any

from dlscale.errors import SpecError


def connect(address: str, security: Any = None) -> Any:
    """A client of the scheduler there, with the TLS of a cluster that was started here (SpecError if nothing answers)."""
    import dask
    from distributed import Client
    from distributed.security import Security

    if address.startswith("tls://") and security is None and not Security().tls_client_cert:  # type: ignore
        raise SpecError(f"cluster: {address} needs certificates; export DASK_CONFIG with the file that names the cluster's.")
    try:
        # Messages that were sent are not kept.
        with dask.config.set({"distributed.admin.low-level-log-length": 0}):
            return Client(address, timeout="10s", set_as_default=False, security=security)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        raise SpecError(f"cluster: nothing answers at {address} ({error}); start a scheduler, or use `cluster: local`.") from error


def answers(address: str) -> bool:
    """Whether a scheduler's port takes connections."""
    host, _, port = address.split("://")[-1].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
    except OSError:
        return False
    return True


def list_workers(client: Any) -> dict[str, Any]:
    """What the scheduler of a client says of each worker, by address (OSError if it is gone).

    ``client.scheduler_info`` shares its answer with the client's own regular query, which asks for no workers.
    """
    return dict(client.sync(client.scheduler.identity, n_workers=-1)["workers"])


def quieten() -> None:
    """Dask's log lines and notes say nothing that the user of a job can act on; failures arrive as exceptions."""
    import distributed  # noqa: F401  (it gives its loggers levels of their own)

    for name in ("distributed", "bokeh", "tornado.application", "asyncio", *logging.root.manager.loggerDict):
        if name.startswith(("distributed", "bokeh", "tornado", "asyncio")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
