"""Who may do what: a file with the hashes of tokens.

    # name    scopes        SHA-256 of the token
    alice     read,submit   9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

A token is 256 random bits, so its bare hash tells nothing about it. The file is read again when it has changed: a line that is
removed is a token that is revoked.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

from dlscale.errors import SpecError
from dlscale.storage.files.atomic import read_plain

#: Each holds what stands before it.
SCOPES = ("read", "submit", "admin")
_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Grant:
    """What whoever asks may do.

    Parameters
    ----------
    name : str
        Of the token; empty where none is needed.
    scopes : frozenset of str
    """

    name: str
    scopes: frozenset[str]

    def allows(self, scope: str) -> bool:
        return scope in self.scopes


EVERYTHING = Grant("", frozenset(SCOPES))


class Tokens:
    """The tokens of a file.

    Parameters
    ----------
    path : Path

    Raises
    ------
    SpecError
        If it cannot be read, others may change it, or a line is none of a token.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._grants: list[tuple[bytes, Grant]] = []
        if not self._current():
            raise SpecError(f"{path} holds no token; make one with `dlscale serve --token-file {path} --new-token NAME:SCOPE`.")

    def grant(self, token: str) -> Grant | None:
        """What a token allows; None of one that is not known. Takes the same time whichever it is.

        Raises
        ------
        SpecError
            If the file is damaged meanwhile: then nobody is let in.
        """
        digest, found = _digest(token), None
        for known, grant in self._current():
            if hmac.compare_digest(known, digest):
                found = grant
        return found

    def _current(self) -> list[tuple[bytes, Grant]]:
        with self._lock:
            try:
                found = os.stat(self.path)
                stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
                if stamp != self._stamp:
                    _require_private(self.path, found)
                    self._grants = _parse(self.path, read_plain(self.path))
                    self._stamp = stamp
            except OSError as error:
                self._stamp = None
                raise SpecError(f"{self.path} cannot be read: {error.strerror}.") from error
            return self._grants


def add_token(path: Path, request: str) -> str:
    """Add a line to a file, made where it is absent, for a new token.

    Parameters
    ----------
    path : Path
    request : str
        ``NAME:SCOPE``; the scope holds those below it.

    Returns
    -------
    str
        The token, which is kept nowhere.
    """
    name, _, scope = request.partition(":")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or scope not in SCOPES:
        raise SpecError(f"--new-token: got {request}; allowed: NAME:SCOPE, with a scope of {', '.join(SCOPES)}.")
    token = secrets.token_urlsafe(32)
    scopes = ",".join(SCOPES[: SCOPES.index(scope) + 1])
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(f"{name} {scopes} {_digest(token).decode()}\n".encode())
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror}.") from error
    return token


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).hexdigest().encode()


def _require_private(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SpecError(f"{path} can be changed by others, who could make tokens of their own: `chmod go-w {path}`.")


def _parse(path: Path, data: bytes) -> list[tuple[bytes, Grant]]:
    if len(data) > _MAX_BYTES:
        raise SpecError(f"{path} is no file of tokens: it has more than {_MAX_BYTES:,} bytes.")
    grants = []
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        fields = line.split()
        scopes = frozenset(fields[1].split(",")) if len(fields) == 3 else frozenset()
        if not scopes or not scopes <= set(SCOPES) or not re.fullmatch("[0-9a-f]{64}", fields[-1]):
            raise SpecError(f"{path}:{number}: must be a name, scopes of {', '.join(SCOPES)}, and the SHA-256 of a token.")
        grants.append((fields[2].encode(), Grant(fields[0], scopes)))
    return grants
