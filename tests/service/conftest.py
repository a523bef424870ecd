from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import zarr

# Test files are imported by path, which leaves their folder off the module path.
sys.path.insert(0, str(Path(__file__).parent))

from gate import PATIENCE_SECONDS
from web_server import WebServer

from dlscale.service.tokens import add_token


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a server runs: a matrix, and a file that no job may read, beside it."""
    place = tmp_path_factory.mktemp("place") / "here"
    place.mkdir()
    for path in (place / "a.zarr", place.parent / "outside.zarr"):
        array = zarr.create_array(path, shape=(4000, 30), dtype="f8", chunks=(500, 30))
        array[:] = np.random.default_rng(1).standard_normal((4000, 30))
    return place


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[WebServer]:
    with WebServer(folder) as running:
        yield running


@pytest.fixture
def browser(server: WebServer) -> Iterator[httpx.Client]:
    """A client that keeps cookies and sends what a browser does."""
    headers = {"Accept": "text/html", "Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture(scope="session")
def guarded(folder: Path) -> Iterator[tuple[WebServer, dict[str, str]]]:
    """A server that is open to the network, and a token of each scope."""
    path = folder.parent / "tokens"
    tokens = {scope: add_token(path, f"{scope}er:{scope}") for scope in ("read", "submit", "admin")}
    with WebServer(folder, "--host", "0.0.0.0", "--token-file", str(path), "--name", "jobs.example") as running:
        yield running, tokens
