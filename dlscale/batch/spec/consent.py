"""What a job file alone may not decide: whose code runs.

Whoever connects to a Dask scheduler runs what it sends, and a container image is code. An address or an image that only a job
file names could be a stranger's, so the person who runs the job names it too.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from dlscale.batch.document import Document
from dlscale.batch.spec.sections import ClusterSpec
from dlscale.errors import SpecError

#: Addresses of schedulers, hosts and container images that job files may name, separated by commas or blanks.
TRUSTED = "DLSCALE_TRUSTED_CLUSTERS"


def require_consent(cluster: str | ClusterSpec, document: Document, *, only_looks: bool = False) -> None:
    """Refuse a cluster that only a file names, unless it is the person's own.

    Parameters
    ----------
    cluster : str or ClusterSpec
        As the document asks for it.
    document : Document
        Tells what was given beside a file.
    only_looks : bool
        Whether the job is only planned. A file never makes a plan connect; a run goes to schedulers of this machine that are
        the person's own.

    Raises
    ------
    SpecError
        Saying how to name it.
    """
    if isinstance(cluster, ClusterSpec):
        image = cluster.image
        if image is None or only_looks or document.is_given(("cluster", "image")) or _trusted(image):
            return
        raise SpecError(
            f"the image {image} is named by the job file alone, and would run with your rights in the cluster; name it too, with "
            f"`--set cluster.image={image}` or in {TRUSTED}."
        )
    if "://" not in cluster or document.is_given(("cluster",)) or _trusted(cluster) or (not only_looks and _own(cluster)):
        return
    instead = ", or plan for a cluster that is assumed, with --workers and --worker-memory" if only_looks else ""
    raise SpecError(
        f"{cluster} is named by the job file alone, and whoever owns that scheduler can run code here; name it too, with "
        f"`--cluster {cluster}` or in {TRUSTED}{instead}."
    )


def _trusted(name: str) -> bool:
    listed = os.environ.get(TRUSTED, "").replace(",", " ").split()
    host = urlsplit(name).hostname if "://" in name else None
    return name in listed or (host is not None and host in listed)


def _own(address: str) -> bool:
    """Whether an address is one of this machine's, with nobody else's process behind it; asks no name server."""
    try:
        parts = urlsplit(address)
        host, port = (parts.hostname or "").partition("%")[0], parts.port
    except ValueError:
        return False
    if port is None:
        return False
    if host in ("localhost", socket.gethostname().lower()):
        return not _foreign_listeners(port)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    local = {entry.address.partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries}
    return (ip.is_loopback or str(ip) in local) and not _foreign_listeners(port)


def _foreign_listeners(port: int) -> bool:
    """Whether another user's process listens on a port of this machine, as far as the system tells."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, user, *_ = line.split()
                if state == "0A" and int(local.rpartition(":")[2], 16) == port and int(user) not in (0, os.getuid()):
                    return True
    return False
