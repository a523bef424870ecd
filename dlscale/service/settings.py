"""What a server is told when it starts."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlscale.batch.workspace import Workspace
from dlscale.engine.clusters.peers import is_loopback
from dlscale.errors import SpecError
from dlscale.service.allowed import Allowed
from dlscale.service.retention import ALL_STAY, Retention
from dlscale.service.tokens import Tokens

#: A job file is a page of text.
MAX_BODY_BYTES = 2**20
#: Of one answer with a part of a log.
MAX_LOG_BYTES = 2**20
#: Streams of events that are open at once.
MAX_STREAMS = 200
#: Requests that plan, start, stop or draw, at once; others wait for a while, then are told to come again.
MAX_SLOW, SLOW_SECONDS = 4, 30.0
#: A reader that takes nothing, or a client that sends nothing, for so long is let go.
IDLE_SECONDS = 60.0


@dataclass(frozen=True)
class Settings:
    """Of one server.

    Parameters
    ----------
    workspace : Workspace
    host, port
        Where it listens.
    allowed : Allowed
    cluster : str, optional
        Where all its jobs run, as `dlscale submit --cluster` takes it.
    tokens : Tokens, optional
        None on the loopback interface, for the user who runs the server.
    names : tuple of str
        Host names by which it is asked, beside those that are its own.
    retention : Retention
        Which jobs it removes by itself.
    """

    workspace: Workspace
    host: str
    port: int
    allowed: Allowed
    cluster: str | None = None
    tokens: Tokens | None = None
    names: tuple[str, ...] = ()
    retention: Retention = ALL_STAY

    @classmethod
    def checked(
        cls,
        workspace: Workspace,
        *,
        host: str = "127.0.0.1",
        port: int = 8787,
        allow: Sequence[str] = (),
        cluster: str | None = None,
        token_file: Path | None = None,
        names: Sequence[str] = (),
    ) -> Settings:
        """Settings from the options of the command line; without ``allow`` the current folder is (SpecError)."""
        if token_file is None and not is_loopback(host):
            raise SpecError(
                f"--host: got {host}, which others can reach; give --token-file too, or listen on 127.0.0.1. "
                "`dlscale serve --token-file FILE --new-token NAME:SCOPE` makes a token."
            )
        allowed = Allowed(allow or (str(Path.cwd()),), workspace)
        tokens = None if token_file is None else Tokens(token_file)
        return cls(workspace, host, port, allowed, cluster, tokens, tuple(name.lower() for name in names))

    def knows_host(self, name: str) -> bool:
        """Whether a server of these settings is asked by this name, without its port.

        A page of a stranger can give its own name this machine's address; it cannot give it the name of another. Behind
        numbers there is no name to give.
        """
        name = name.lower().rstrip(".")
        if name in ("localhost", *self.names):
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return not is_loopback(self.host) and name in (
                self.host.lower(),
                socket.gethostname().lower(),
                socket.getfqdn().lower(),
            )
        return address.is_loopback or not is_loopback(self.host)
