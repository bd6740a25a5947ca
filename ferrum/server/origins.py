"""Which pages and which names may reach the server: the Origin that a browser states, and the Host that was asked for.

Without a key the two are all that stands between the server and a page that its user happens to visit: a page of another site
(Origin), or one whose name was pointed at this machine (Host; DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from ferrum.errors import FerrumError

EVERY_ORIGIN = "*"
NO_ORIGIN = "null"  # what pages from files and sandboxed frames say
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")
_FIELD_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Values of ``--allowed-origins``, in the form that browsers send. Raises FerrumError for what is no origin."""
    checked = tuple(o.strip().rstrip("/").lower() for o in origins if o.strip())
    for origin in checked:
        if origin not in (EVERY_ORIGIN, NO_ORIGIN) and not _ORIGIN.fullmatch(origin):
            step = "give scheme://host[:port], scheme://* for every host of a scheme, null, or *"
            raise FerrumError("bad-option", f"{origin} is not an origin", "--allowed-origins", step)
    return checked


@dataclass(frozen=True)
class Gate:
    """``host``: the address that the server listens on. ``origins``: as ``check_origins`` gives them."""

    host: str
    origins: tuple[str, ...] = ()

    def allows_origin(self, origin: str) -> bool:
        """Pages of this machine, and those that were named."""
        origin = origin.lower()
        if EVERY_ORIGIN in self.origins or origin in self.origins:
            return True
        if not _ORIGIN.fullmatch(origin):
            return False
        scheme, _, _ = origin.partition("://")
        if f"{scheme}://*" in self.origins:
            return True
        return scheme in ("http", "https") and is_local_name(_host_of(origin))

    def allows_host(self, given: str) -> bool:
        """Whether a Host header is this machine's loopback or what the server was bound to."""
        if not is_loopback(self.host):
            return True  # --insecure on an address that others reach: it has names that are not known here
        host = _host_of(f"//{given}")
        return is_local_name(host) or host == self.host.strip("[]").lower()


def _host_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def is_local_name(host: str) -> bool:
    """``localhost``, a name below it (RFC 6761), or a loopback address."""
    return host.endswith(".localhost") or is_loopback(host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``. A name other than localhost counts as reachable by others."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def cors_headers(origin: str) -> dict[str, str]:
    """What lets a page of ``origin`` read the answer."""
    return {"access-control-allow-origin": origin, "access-control-expose-headers": "x-request-id, retry-after", "vary": "origin"}


def preflight_headers(origin: str, asked: str, private_network: bool) -> dict[str, str]:
    """The answer to a browser's question before a request. ``asked``: Access-Control-Request-Headers."""
    names = [n for n in (part.strip() for part in asked[:4096].split(",")) if _FIELD_NAME.fullmatch(n)]
    headers = {
        "access-control-allow-methods": "GET, HEAD, POST, DELETE, OPTIONS",
        "access-control-allow-headers": ", ".join(names or ["authorization", "content-type", "x-api-key"]),
        "access-control-max-age": "600",
        **cors_headers(origin),
    }
    return headers | ({"access-control-allow-private-network": "true"} if private_network else {})
