"""Which Host headers a server of ours answers: without that, a web page whose name is pointed at 127.0.0.1 reads what it serves (DNS rebinding)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

REFUSED = "this host name is not served: add it to [search] hosts"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def is_any(host: str) -> bool:
    """Whether an address stands for all of the machine's, and so is none to go to."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host


def is_served(header: str, bound: str, hosts: Sequence[str] = ()) -> bool:
    """Whether a Host header names a server that is bound to an address.

    On loopback: localhost, loopback addresses, what it is bound to, and `hosts`. Beyond loopback, where a token is asked for: `hosts`, or any where
    there are none. A host may be *.example.org.
    """
    if not is_loopback(bound) and not hosts:
        return True
    name = _name(header)
    return is_loopback(name) or name == bound.lower() or any(_matches(name, host.lower()) for host in hosts)


def _name(header: str) -> str:
    """The host of a header, without its port and the brackets of IPv6."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header


def _matches(name: str, host: str) -> bool:
    return name.endswith(host[1:]) if host.startswith("*.") else name == host


def guarded(app: WSGIApplication, bound: str) -> WSGIApplication:
    """A WSGI app that answers only those who mean it."""

    def answer(environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if is_served(environment.get("HTTP_HOST", ""), bound):
            return app(environment, start_response)
        start_response("421 Misdirected Request", [("Content-Type", "text/plain")])
        return [REFUSED.encode()]

    return answer
