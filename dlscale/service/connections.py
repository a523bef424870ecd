"""Who connects: on the loopback interface without a token, only processes of the user who runs the server."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from dlscale.engine.clusters.peers import is_foreign
from dlscale.service.settings import IDLE_SECONDS


class Connection(H11Protocol):
    """A connection of HTTP/1.1 that is closed when nothing was asked for a minute."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(IDLE_SECONDS, self._end_unless_asked)

    def _end_unless_asked(self) -> None:
        if getattr(self, "cycle", None) is None:  # not one request is whole
            self.transport.abort()


class OwnConnection(Connection):
    """Such a connection from a process of this user; others are closed unheard."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if is_foreign(transport.get_extra_info("socket")):
            transport.abort()
