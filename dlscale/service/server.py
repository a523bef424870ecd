"""The process that serves."""

from __future__ import annotations

import resource
import signal
import socket
from contextlib import suppress
from types import FrameType

import uvicorn

from dlscale.errors import SpecError
from dlscale.service.app import make_app
from dlscale.service.connections import Connection, OwnConnection
from dlscale.service.desk import Desk
from dlscale.service.settings import IDLE_SECONDS, Settings
from dlscale.storage.objects.address import SERVING, be

_SHUTDOWN_SECONDS = 3
#: Descriptors for all that is not a connection.
_OTHER_FILES = 200


def serve(settings: Settings, *, ready: str = "") -> None:
    """Serve until SIGINT or SIGTERM.

    Parameters
    ----------
    settings : Settings
    ready : str
        Printed when the server listens; ``{url}`` is its address.
    """
    be(SERVING)
    listener, desk = _listen(settings.host, settings.port), Desk(settings)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        make_app(desk),
        http=OwnConnection if settings.tokens is None else Connection,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES, 50),
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(ready.format(url=f"http://{host}:{port}/"), flush=True)
    # uvicorn hands a signal on when it is done with it; it has done all that it was to do.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    _Server(config, desk).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends its streams when it is to stop, instead of waiting for their readers."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._desk.stopping = True
        super().handle_exit(sig, frame)


def _listen(host: str, port: int) -> socket.socket:
    try:
        # With its protocol: asyncio sends at once, without waiting for acknowledgements, only where it reads TCP there.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What is accepted inherits it: a reader that takes nothing for so long is let go, with what waited for it.
        with suppress(AttributeError, OSError):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * IDLE_SECONDS))
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        raise SpecError(f"--host, --port: nothing can listen on {host}, port {port}: {error.strerror}.") from error
    listener.set_inheritable(False)
    return listener
