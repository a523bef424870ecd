"""Text that leaves the process: URLs without what opens them, nothing that a terminal would obey, and words in number."""

from __future__ import annotations

import re
from urllib.parse import unquote

#: What stands for a secret.
HIDDEN = "***"

#: Schemes whose part before the @ is a container or a user's name, not a password.
_NAMES = frozenset({"abfs", "abfss", "wasb", "wasbs", "adl", "az", "sftp", "ssh", "scp", "hdfs", "webhdfs", "smb", "file"})
#: Up to the last @ before the path; or, behind a colon that no port follows, up to the last @ at all: people do not encode the
#: slash in their password.
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(:/{1,2})([^/\s?#@]*:(?!\d*[/?#])\S*|[^/\s?#]*)@")
#: Or a blank.
_USER_WITH_BLANKS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(://)([^/\s?#@]*:(?!\d*(?:[/?#\s]|$))[^@/\n]{1,64})@(?=\w)")
_QUERY = re.compile(r"(?<=[?&;#])([A-Za-z0-9_.~%\[\]-]+)=([^&;#\s'\"<>]*)")
#: A path merges the slashes of a URL.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/[^\s]+")
#: Parameters of signed URLs (AWS, Google, Azure, Akamai, OAuth and others of the kind).
_SECRET_NAME = re.compile(
    r"sig|token|secret|key|pass|pwd|auth|cred|policy|jwt|session|ticket|hmac|hdn|access|bearer|code|x-(amz|goog|oss|cos|ms|obs)-",
    re.IGNORECASE,
)
#: A value so long and without structure is a signature whatever its name.
_SECRET_VALUE = re.compile(r"[A-Za-z0-9+/_=%-]{20,}")

#: All that a terminal may obey, what changes the direction of writing, and what has no width; tabs and line breaks are left.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ud800-\udfff]"
)


def without_secrets(text: str) -> str:
    """A text in which passwords and signatures of URLs are replaced by ``***``; the same when it holds none."""
    return _URL.sub(_redact, _USER_WITH_BLANKS.sub(_redact_user, text)) if ":/" in text else text


def visible(text: str) -> str:
    r"""A text in which control characters are written out (``\x1b``), so that no terminal obeys them."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def shown(text: str) -> str:
    """A text as a person or a file for others may see it: `without_secrets` and `visible`."""
    return visible(without_secrets(text))


def without_address(url: str) -> str:
    """What stays of a URL when its user, query and fragment are taken away: two signatures of one object are alike."""
    return _USER.sub(r"\1\2", url).partition("?")[0].partition("#")[0]


def _redact(url: re.Match[str]) -> str:
    return _QUERY.sub(_redact_parameter, _USER.sub(_redact_user, url[0]))


def _redact_user(found: re.Match[str]) -> str:
    scheme, slashes, user = found.groups()
    if scheme.lower().split("+")[-1] in _NAMES and ":" not in user:
        return found[0]
    return f"{scheme}{slashes}{HIDDEN}@"


def _redact_parameter(found: re.Match[str]) -> str:
    name, value = found[1], found[2]
    if value and (_SECRET_NAME.search(unquote(name)) or _SECRET_VALUE.fullmatch(value)):
        return f"{name}={HIDDEN}"
    return found[0]


def several(n: int, one: str) -> str:
    """How many of something there are: ``1 worker``, ``1,200 workers``."""
    return f"{n:,} {one}{'s'[: n != 1]}"
