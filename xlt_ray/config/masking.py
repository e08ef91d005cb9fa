"""Mask the secrets of URIs in whatever is printed, logged, stored or sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
# up to the last @, as a password may hold one; but a path or the end, and on the web a port, say that there is no user
PORT = r"(?:(?:(?<=http://)|(?<=https://))[^/?#@\s:]*:\d+)"
USER = re.compile(rf"(?P<scheme>\b[A-Za-z][\w+.-]*)://(?!(?:{PORT}|[^/?#@\s:]*)(?:[/?#\s]|$))(?P<user>\S*)@")
QUERY = re.compile(
    r"(?P<key>[?&;][\w.-]*(?:password|passwd|pwd|secret|token|signature|credential|api_?key|access_?key|odbc_connect)"
    r"[\w.-]*=|[?&;](?:sig|auth|pass|key)=)[^&;#\s]*",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """Replace the secrets in a URI, or in a text that holds some: passwords, and values of keys such as `token`.

    >>> masked("postgresql://ann:pw@db/x?sslmode=require"), masked("https://ann:pw@host/mlflow")
    ('postgresql://ann:***@db/x?sslmode=require', 'https://***@host/mlflow')
    >>> masked(masked("mysql://ann:pw@db/x?password=pw")), masked("sqlite:///xlt.db")
    ('mysql://ann:***@db/x?password=***', 'sqlite:///xlt.db')
    """

    def user(found: re.Match[str]) -> str:
        name, colon, _ = found["user"].partition(":")
        # a name alone is often a token on the web, and never with a database
        shown = HIDDEN if found["scheme"].lower().startswith("http") else name + (colon and f":{HIDDEN}")
        return f"{found['scheme']}://{shown}@"

    return QUERY.sub(rf"\g<key>{HIDDEN}", USER.sub(user, text))


def public(data: Any) -> Any:
    """Return a copy of plain data with every text in it masked; mappings and sequences come out as dict and list."""
    if isinstance(data, Mapping):
        return {key: public(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [public(value) for value in data]
    return masked(data) if isinstance(data, str) else data
