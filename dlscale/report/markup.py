"""HTML that escapes by construction: text is escaped unless it is already `Markup`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

from dlscale.showing import shown

_VOID = frozenset({"meta", "img", "br", "hr"})


class Markup(str):
    """Text that is HTML already."""


NOTHING = Markup("")


def escape(text: str) -> Markup:
    """Escape `text` unless it is `Markup`; control characters and the secrets of URLs are written out and hidden."""
    return text if isinstance(text, Markup) else Markup(html.escape(shown(text)))


def join(parts: Iterable[str]) -> Markup:
    """Concatenate, escaping what is plain text."""
    return Markup("".join(escape(part) for part in parts))


def tag(name: str, attributes: Mapping[str, str] | None = None, *children: str) -> Markup:
    """One element.

    Parameters
    ----------
    name : str
        Element name.
    attributes : mapping, optional
        Values are escaped.
    *children : str
        Plain text (escaped) or `Markup`.
    """
    written = "".join(f' {key}="{html.escape(shown(value))}"' for key, value in (attributes or {}).items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def div(style: str, *children: str) -> Markup:
    """A ``div`` with a class."""
    return tag("div", {"class": style}, *children)
