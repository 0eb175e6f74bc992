"""Search over HTTP: `latent serve --search`.

    POST /search    {"query": "how do I parse a date", "k": 3, "mode": "hybrid"} → {"hits": […]}
    GET  /healthz   which version of the table is served
    GET  /metrics   for Prometheus
    GET  /docs      every field, with a form to try it

Each search is asked of the newest version there is; a commit, an index or a migration needs no restart. Beyond loopback a bearer token is wanted; on
loopback only requests that name this machine are answered, or one of `[search] hosts`. Each request has an id (X-Request-ID, taken or given) and a line in
the log. The page /docs loads nothing from elsewhere.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.cors import CORSMiddleware

from latent import interruption
from latent.config import Search
from latent.errors import ConfigError, PipelineError, QueryError
from latent.ingest import status as table_status
from latent.monitoring.hosts import is_any, is_loopback
from latent.monitoring.metrics import TableCollector
from latent.search import SearchTable
from latent.search.middleware import REQUEST_ID, LimitedBody, RequestLog, ServedHosts
from latent.serialization import to_json
from latent.types import Mode

TOKEN = "LATENT_SEARCH_TOKEN"  # noqa: S105  the variable's name
MOST_K = 1000
MOST_CHARS = 10_000  # of a query
MOST_TEXTS = 10  # that are added, or taken off
Text = Annotated[str, Field(min_length=1, max_length=MOST_CHARS)]


class SearchRequest(BaseModel):
    """A search."""

    model_config = ConfigDict(extra="forbid")

    query: str = Field("", max_length=MOST_CHARS, description="may be left out where there is plus")
    k: int = Field(10, ge=1, le=MOST_K)
    where: str | dict[str, Any] | None = Field(
        None, description='columns and what they may hold, such as {"acl": ["hr"], "year": {"gte": 2019}}; or an SQL condition'
    )
    mode: Mode | None = Field(None, description="left out: [search] mode of the config")
    rerank: bool = False
    diversity: float = Field(0.0, ge=0, le=1)
    per_document: bool = False
    context: int = Field(0, ge=0, le=10)
    exact: bool = False
    compressed: bool = False
    plus: list[Text] = Field([], max_length=MOST_TEXTS, description="texts whose vectors are added to the query's")
    minus: list[Text] = Field([], max_length=MOST_TEXTS, description="texts whose vectors are taken off it")


class SearchHit(BaseModel):
    """A hit; the table's metadata columns stand beside these."""

    model_config = ConfigDict(extra="allow")

    rank: int
    doc_id: str
    chunk_id: str
    score: float
    text: str
    before: str = ""
    after: str = ""


class SearchResponse(BaseModel):
    """What was found, best first."""

    hits: list[SearchHit]


@dataclass(frozen=True)
class ServerInfo:
    """Where the service is reached from this machine, and the token it wants."""

    url: str
    token: str | None


def service(table: SearchTable, token: str | None = None, figures: Collector | None = None, bound: str | None = None) -> FastAPI:
    """The app; /metrics tells `figures` of the table beside those of the searches. `bound`: the address that it listens on; None answers any Host header.

    With a token, /search and /metrics want it; /healthz, /docs and /openapi.json tell nothing of what the table holds.
    """
    app = FastAPIOffline(
        title="latent",
        summary="Search over a table of embeddings",
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/assets",
        swagger_ui_oauth2_redirect_url="/docs/oauth2-redirect",
    )
    _surround(app, table.settings, bound)
    app.add_exception_handler(PipelineError, _failed)
    app.add_exception_handler(RequestValidationError, _malformed)
    registry = CollectorRegistry()
    answered = Counter("latent_searches", "Searches by mode and HTTP status", ["mode", "status"], registry=registry)
    seconds = Histogram("latent_search_seconds", "Time of a search", ["mode"], registry=registry)
    version = Gauge("latent_table_version", "Version of the table that is served", registry=registry)
    version.set_function(lambda: table.version)
    if figures is not None:
        registry.register(figures)
    wanted = [Depends(_bearer(token))] if token else []

    @app.post(
        "/search",
        dependencies=wanted,
        responses={200: {"model": SearchResponse}, 422: {"description": "The search cannot be answered"}},
    )
    def search(asked: SearchRequest) -> Response:
        """The passages that answer best."""
        mode, started, status = asked.mode or table.mode, time.perf_counter(), 500
        try:
            hits = table.search(**asked.model_dump())
            body = to_json({"hits": [hit.flat() for hit in hits]})
        except PipelineError as error:
            status = _status(error)
            raise
        else:
            status = 200
            return Response(body, media_type="application/json")
        finally:
            answered.labels(mode, status).inc()
            seconds.labels(mode).observe(time.perf_counter() - started)

    @app.get("/healthz")
    def healthz() -> dict[str, object]:
        """Whether searches are answered, and of which version."""
        return {"ok": True, "table_version": table.version}

    @app.get("/metrics", dependencies=wanted, include_in_schema=False)
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _surround(app: FastAPI, settings: Search, bound: str | None) -> None:
    """Add what stands around each request, the innermost first."""
    app.add_middleware(LimitedBody)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", REQUEST_ID],
            expose_headers=[REQUEST_ID],
        )
    if bound is not None:
        app.add_middleware(ServedHosts, bound=bound, hosts=settings.hosts)
    app.add_middleware(RequestLog)


def serve(table: SearchTable, host: str, port: int, on_ready: Callable[[ServerInfo], None]) -> None:
    """Answer until a signal; requests under way are finished. Port 0: any. Raises ConfigError where the address cannot be had."""
    token = os.environ.get(TOKEN) or (None if is_loopback(host) else secrets.token_urlsafe(32))
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}: choose another --host or --port") from None
        table.encode_queries(["warm up"])
        figures = TableCollector(table.place.name, lambda: table_status.figures(table.place))
        listening.listen()
        reached = host if not is_any(host) else "::1" if ":" in host else "127.0.0.1"
        shown = f"[{reached}]" if ":" in reached else reached
        on_ready(ServerInfo(f"http://{shown}:{listening.getsockname()[1]}", token))
        server = uvicorn.Server(uvicorn.Config(service(table, token, figures, host), log_level="warning"))
        with interruption.ending_in_order():
            signal.signal(signal.SIGHUP, server.handle_exit)  # as uvicorn itself does for the others
            server.run([listening])


def _bearer(token: str) -> Callable[..., None]:
    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> None:
        if given is None or not secrets.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(401, "a bearer token is wanted", {"WWW-Authenticate": "Bearer"})

    return check


def _status(error: Exception) -> int:
    return 422 if isinstance(error, QueryError) else 503


def _failed(_: Request, error: Exception) -> Response:
    return _told(_status(error), str(error))


def _malformed(_: Request, error: Exception) -> Response:
    """As FastAPI tells it, but without what was got: not everything that came as JSON can go back as JSON, such as a number out of range."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    return _told(422, [{key: each[key] for key in ("type", "loc", "msg")} for each in found])


def _told(status: int, detail: object) -> Response:
    return Response(to_json({"detail": detail}), status, media_type="application/json")
