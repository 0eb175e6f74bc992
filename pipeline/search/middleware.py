"""What stands around each request to the search service: its id and its line in the log, the hosts that are served, the size of a body."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Sequence

from fastapi import HTTPException, Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latent.monitoring.hosts import REFUSED, is_served
from latent.serialization import to_json

log = logging.getLogger("latent.access")
MAX_BODY_BYTES = 64 << 10
REQUEST_ID = "X-Request-ID"
ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
PATH_CHARS = 200  # of a path in the log


class RequestLog:
    """Gives each request an id, its own or a new one, and writes one line when it is answered: method, path, status, milliseconds, id.

    Nothing that is asked for stands in the log, nor a token. What fails on our side is answered 500, with the id under which the log has it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        given = Headers(scope=scope).get(REQUEST_ID, "")
        name = given if ID.fullmatch(given) else uuid.uuid4().hex

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = name
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception:
            log.exception("request %s failed", name)
            if status:
                raise
            body = to_json({"detail": f"the search failed on our side: see request {name} in the log of the service"})
            await Response(body, 500, media_type="application/json")(scope, receive, named)
        finally:
            path = scope.get("raw_path", b"").partition(b"?")[0].decode("ascii", "replace")[:PATH_CHARS]
            ms = (time.perf_counter() - started) * 1000
            log.info("%s %s %d %.1f ms %s", scope["method"], path, status, ms, name)


class ServedHosts:
    """Refuses a Host header that names none of the hosts that are served."""

    def __init__(self, app: ASGIApp, bound: str, hosts: Sequence[str]) -> None:
        self._app, self._bound, self._hosts = app, bound, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and not is_served(Headers(scope=scope).get("host", ""), self._bound, self._hosts):
            await Response(to_json({"detail": REFUSED}), 421, media_type="application/json")(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class LimitedBody:
    """Refuses a body of more than MAX_BODY_BYTES, whether its length is announced or not, and a length that is no number."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY_BYTES:
                raise HTTPException(413, f"a body of more than {MAX_BODY_BYTES} bytes")
            return message

        announced = Request(scope).headers.get("content-length", "0") if scope["type"] == "http" else "0"
        if not announced.isdecimal():
            await Response("content-length is no number", 400)(scope, receive, send)
        elif len(announced) > len(str(MAX_BODY_BYTES)) or int(announced) > MAX_BODY_BYTES:
            await Response(f"a body of more than {MAX_BODY_BYTES} bytes", 413)(scope, receive, send)
        else:
            await self._app(scope, counted if scope["type"] == "http" else receive, send)
