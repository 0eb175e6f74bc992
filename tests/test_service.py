"""Search over HTTP, on a real server, with the table changing underneath."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import httpx
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Desk, words
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry

from latent import Hit, SearchTable, open_table
from latent.ingest import maintenance
from latent.monitoring.exposition import shown_at
from latent.search.http_server import service

LATENT = Path(sys.executable).with_name("latent")


@pytest.fixture(scope="module")
def desk(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = desk_for(tmp_path_factory.mktemp("served"), metadata=["n"])
    desk.write("a.jsonl", [{"id": f"d{i}", "n": i, "text": words(*range(i * 4, i * 4 + 10))} for i in range(5, 100)])
    desk.embed()
    maintenance.maintain(desk.config)
    return desk


@contextmanager
def serving(desk: Desk, *more: str, **environment: str) -> Iterator[httpx.Client]:
    command = [LATENT, "serve", "--search", "--port", "0", "--json", *more]
    log = (desk.folder / "serve.log").open("w")
    with (
        log,
        subprocess.Popen(
            command, cwd=desk.folder, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | environment
        ) as process,
    ):
        ready = json.loads(process.stdout.readline())
        url = ready["url"]
        headers = {"Authorization": f"Bearer {ready['token']}"} if ready["token"] else {}
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            yield client
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def client(desk: Desk) -> Iterator[httpx.Client]:
    with serving(desk) as client:
        yield client


def test_an_answer_is_that_of_python(client: httpx.Client, desk: Desk) -> None:
    asked = {
        "query": words(101, 102),
        "k": 4,
        "where": {"n": list(range(5, 60))},
        "mode": "hybrid",
        "per_document": True,
        "context": 1,
    }
    answer = client.post("/search", json=asked)
    assert answer.status_code == 200
    hits = open_table(desk.config_path).search(
        words(101, 102), 4, {"n": list(range(5, 60))}, mode="hybrid", per_document=True, context=1
    )
    assert answer.json() == {"hits": [hit.flat() for hit in hits]}
    assert client.post("/search", json={"query": words(101), "where": "n = 25", "k": 1}).json()["hits"][0]["n"] == 25


def test_an_answer_is_strict_json_whatever_the_metadata(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path / "odd", uri="src/*.parquet", metadata=["number", "bytes", "price", "day", "took", "nested"])
    columns = {
        "number": pa.array([math.nan, math.inf]),
        "bytes": pa.array([b"ab\xff", b""]),
        "price": pa.array([Decimal("1.10"), None], pa.decimal128(9, 2)),
        "day": pa.array([dt.date(2026, 11, 27), None]),
        "took": pa.array([dt.timedelta(seconds=90), None], pa.duration("us")),
        "nested": pa.array([{"scores": [-math.inf, 1.0]}, None]),
    }
    pq.write_table(pa.table({"id": ["a", "b"], "text": [words(1), words(2)], **columns}), desk.source / "a.parquet")
    desk.embed()
    with TestClient(service(open_table(desk.config_path))) as client:
        answer = client.post("/search", json={"query": words(1), "k": 2})
    first, second = sorted(orjson.loads(answer.content)["hits"], key=lambda hit: hit["doc_id"])
    assert (first["number"], first["bytes"], first["price"], first["day"], first["took"]) == (
        None, "YWL/", "1.10", "2026-11-27", "PT1M30S",
    )  # fmt: skip
    assert (first["nested"], second["number"], second["nested"]) == ({"scores": [None, 1.0]}, None, None)


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({}, 422, "query"),
        ({"query": "w1", "k": 100_000}, 422, "less than or equal to 1000"),
        ({"query": "w1", "q": 3}, 422, "Extra inputs"),
        ({"query": "  "}, 422, "the query is empty"),
        ({"query": "w1", "where": "m = 1"}, 422, "No field named m; columns: "),
        ({"query": "w1", "rerank": True}, 422, "no cross-encoder is set"),
        ({"query": "w1" * 40_000}, 413, "a body of more than 65536 bytes"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_line(client: httpx.Client, asked: dict, status: int, told: str) -> None:
    answer = client.post("/search", json=asked)
    assert answer.status_code == status
    assert told in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('{"query": "\\ud800"}', "valid string"),
        ('{"query": "w1", "where": {"n": "\\ud800"}}', "where n"),
        ('{"query": "w1", "where": {"\\ud800": 1}}', "no such column"),
        ('{"query": "w1", "\\ud800": 1}', "valid string"),
        ('{"query": "w1", "diversity": NaN}', "less than or equal to 1"),
        ('{"query": "w1", "k": 1e400}', "finite number"),
        ('{"query": "w1", ', "JSON decode error"),
    ],
)
def test_what_is_no_proper_json_is_refused_too(client: httpx.Client, body: str, told: str) -> None:
    answer = client.post("/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert told in str(answer.json()["detail"])


@pytest.mark.parametrize("length", ["many", "-1", "9" * 5000])
def test_a_length_that_is_no_number_is_refused(desk: Desk, length: str) -> None:
    with TestClient(service(open_table(desk.config_path))) as query_settings:
        assert query_settings.post("/search", content=b"{}", headers={"content-length": length}).status_code in {400, 413}


def test_what_fails_on_our_side_counts_as_failed(desk: Desk) -> None:
    class Failing(SearchTable):
        def search(self, *_: object, **__: object) -> list[Hit]:
            raise RuntimeError("a library's")

    with TestClient(service(Failing(desk.config)), raise_server_exceptions=False) as query_settings:
        assert query_settings.post("/search", json={"query": "w1"}).status_code == 500
        assert 'latent_searches_total{mode="vector",status="500"}' in query_settings.get("/metrics").text


def test_a_store_that_cannot_be_reached_is_told_as_503(desk: Desk) -> None:
    with TestClient(service(open_table(desk.config_path))) as query_settings:
        (desk.folder / "data").rename(desk.folder / "away")
        found = [query_settings.get(path) for path in ("/healthz", "/metrics")] + [
            query_settings.post("/search", json={"query": "w1"})
        ]
        (desk.folder / "away").rename(desk.folder / "data")
        assert [answer.status_code for answer in found] == [503] * 3
        assert "cannot be opened" in found[0].json()["detail"]
        assert query_settings.get("/healthz").json()["ok"]


def test_a_body_of_unannounced_length_is_limited_too(client: httpx.Client) -> None:
    answer = client.post("/search", content=(b"x" * 10_000 for _ in range(20)), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_health_metrics_and_a_description(client: httpx.Client, desk: Desk) -> None:
    client.post("/search", json={"query": words(101), "mode": "text"})
    client.post("/search", json={"query": words(101)})
    assert client.get("/healthz").json() == {"ok": True, "table_version": open_table(desk.config_path).version}
    metrics = client.get("/metrics").text
    assert 'latent_searches_total{mode="text",status="200"}' in metrics
    assert 'latent_searches_total{mode="vector",status="200"}' in metrics, "the mode of the config"
    assert 'mode="default"' not in metrics
    assert 'latent_last_run_status{status="done",table="docs"} 1.0' in metrics
    assert 'latent_last_success_timestamp_seconds{table="docs"}' in metrics
    assert f"latent_table_version {float(open_table(desk.config_path).version)}" in metrics
    assert "latent_search_seconds_bucket" in metrics
    described = client.get("/openapi.json").json()
    assert described["components"]["schemas"]["SearchRequest"]["properties"]["k"]["maximum"] == 1000
    assert client.get("/docs").status_code == 200


def test_beyond_loopback_a_token_is_wanted(desk: Desk) -> None:
    with serving(desk, "--host", "0.0.0.0") as client:
        assert len(client.headers["Authorization"]) > 40  # a token was made
        assert client.base_url.host == "127.0.0.1"  # an address to click
        assert client.post("/search", json={"query": words(101)}).status_code == 200
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}):
            for path in ("/search", "/metrics"):
                answer = client.request("POST" if path == "/search" else "GET", path, json={"query": "w1"}, headers=headers)
                assert answer.status_code == 401, path
        assert "POST /search 200 " in (desk.folder / "serve.log").read_text()
        for path in ("/healthz", "/docs", "/openapi.json"):  # tell nothing of what the table holds
            assert client.get(path, headers={"Authorization": ""}).status_code == 200, path


def test_a_port_that_is_taken_is_one_line(desk: Desk, client: httpx.Client) -> None:
    port = str(client.base_url.port)
    done = subprocess.run(
        [LATENT, "serve", "--search", "--port", port], cwd=desk.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


def test_no_request_fails_while_the_table_is_rewritten_and_each_sees_whole_documents(desk: Desk, client: httpx.Client) -> None:
    stop, answers = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            answers.append(client.post("/search", json={"query": words(101, 102), "k": 30, "mode": "hybrid"}))

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    versions = set()
    for turn in range(8):
        desk.write("b.jsonl", [{"id": "turning", "n": -turn, "text": words(*range(101, 131))}])
        desk.embed()
        maintenance.maintain(desk.config)
        versions.add(client.get("/healthz").json()["table_version"])
    stop.set()
    for asker in askers:
        asker.join()
    assert len(versions) == 8
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        turning = [hit["n"] for hit in answer.json()["hits"] if hit["doc_id"] == "turning"]
        assert len(set(turning)) <= 1  # never of two states at once


@pytest.mark.parametrize(
    ("bound", "hosts", "host", "served"),
    [
        ("127.0.0.1", [], "localhost", True),
        ("127.0.0.1", [], "LOCALHOST:8000", True),
        ("127.0.0.1", [], "127.0.0.1:8000", True),
        ("127.0.0.1", [], "[::1]:8000", True),
        ("::1", [], "[::1]", True),
        ("127.0.0.1", [], "evil.example", False),
        ("127.0.0.1", [], "evil.example:8000", False),
        ("127.0.0.1", [], "127.0.0.1.evil.example", False),
        ("127.0.0.1", [], "localhost.evil.example", False),
        ("127.0.0.1", [], "", False),
        ("127.0.0.1", ["search.example"], "search.example:443", True),
        ("127.0.0.1", ["*.example"], "a.b.EXAMPLE", True),
        ("127.0.0.1", ["*.example"], "evilexample", False),
        ("0.0.0.0", [], "10.1.2.3:8000", True),
        ("0.0.0.0", ["search.example"], "evil.example", False),
        ("0.0.0.0", ["search.example"], "localhost:8000", True),
    ],
)
def test_a_host_that_names_another_machine_is_not_served(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, bound: str, hosts: list[str], host: str, served: bool
) -> None:
    monkeypatch.setenv("LATENT_SEARCH__HOSTS", json.dumps(hosts))
    with TestClient(service(open_table(desk.config_path), bound=bound)) as query_settings:
        for path in ("/healthz", "/docs", "/metrics"):
            assert query_settings.get(path, headers={"host": host}).status_code == (200 if served else 421), path


def test_the_served_command_and_figures_refuse_another_host_too(client: httpx.Client) -> None:
    assert client.post("/search", json={"query": "w101"}, headers={"host": "evil.example"}).status_code == 421
    registry = CollectorRegistry()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with shown_at(f"127.0.0.1:{port}", registry):
        url = f"http://127.0.0.1:{port}/metrics"
        assert httpx.get(url).status_code == 200
        assert httpx.get(url, headers={"host": "evil.example"}).status_code == 421


def test_the_description_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs").text
    assert "://" not in page.replace("window.location", "")
    for path in re.findall(r'(?:src|href)="([^"]+)"', page):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert len(answer.content) > 1000, path
    assert "/openapi.json" in page


def test_each_request_has_an_id_and_a_line_in_the_log(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "latent.access")
    with TestClient(service(open_table(desk.config_path), token="sesame")) as query_settings:
        headers = {"authorization": "Bearer sesame", "x-request-id": "mine-7"}
        named = query_settings.post("/search?q=asked", json={"query": "w101 private"}, headers=headers)
        other = query_settings.get("/healthz", headers={"x-request-id": "no\u00ef id\x1b[31m".encode("latin-1")})
        refused = query_settings.post("/search", json={"query": "w101"})
    assert named.headers["x-request-id"] == "mine-7"
    assert re.fullmatch("[0-9a-f]{32}", other.headers["x-request-id"])
    lines = [record.getMessage() for record in caplog.records if record.name == "latent.access"]
    assert re.fullmatch(r"POST /search 200 \d+\.\d ms mine-7", lines[0])
    assert lines[1].startswith("GET /healthz 200 ")
    assert lines[2].startswith("POST /search 401 ")
    assert refused.headers["x-request-id"] in lines[2]
    assert not [line for line in lines if "private" in line or "asked" in line or "sesame" in line or "\x1b" in line]


def test_what_fails_on_our_side_names_its_line_in_the_log(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(SearchTable):
        def search(self, *_: object, **__: object) -> list[Hit]:
            raise RuntimeError("a library's")

    with TestClient(service(Failing(desk.config)), raise_server_exceptions=False) as query_settings:
        answer = query_settings.post("/search", json={"query": "w1"}, headers={"x-request-id": "r1"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "r1")
    assert "see request r1 in the log" in answer.json()["detail"]
    assert "request r1 failed" in caplog.text
    assert "a library's" not in answer.text


def test_pages_elsewhere_may_ask_where_that_is_set(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    with TestClient(service(open_table(desk.config_path))) as query_settings:
        assert "access-control-allow-origin" not in query_settings.options("/search", headers=asked).headers
    monkeypatch.setenv("LATENT_SEARCH__CORS_ORIGINS", '["https://app.example"]')
    with TestClient(service(open_table(desk.config_path))) as query_settings:
        assert query_settings.options("/search", headers=asked).headers["access-control-allow-origin"] == "https://app.example"
        answer = query_settings.post("/search", json={"query": words(101)}, headers={"origin": "https://app.example"})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        other = query_settings.options("/search", headers=asked | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
