"""Figures for Prometheus: of the table between runs, and of all processes that share a port."""

from __future__ import annotations

import http.server
import logging
import os
import socket
import time

import httpx
import pytest
from conftest import Desk, HereAndNow, words
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from latent.config import load
from latent.errors import EngineError, TableBusy
from latent.ingest import maintenance, run
from latent.ingest.resolve import store_of
from latent.ingest.status import figures, runs
from latent.monitoring import exposition, metrics
from latent.monitoring.exposition import shown_at
from latent.store import Lease


@pytest.fixture
def listen() -> str:
    """A free address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def told(listen: str) -> set[str]:
    return set(httpx.get(f"http://{listen}/metrics", timeout=10).text.splitlines())


def of_table(desk: Desk) -> set[str]:
    collector = metrics.TableCollector("docs", lambda: figures(store_of(desk.config)))
    return set(generate_latest(metrics.registry_of(collector)).decode().splitlines())


def registry(table: str, tokens: int) -> CollectorRegistry:
    made = CollectorRegistry()
    Counter("latent_run_tokens", "Tokens", ["table"], registry=made).labels(table).inc(tokens)
    Gauge("latent_run_workers", "Workers", ["table"], registry=made).labels(table).set(tokens)
    return made


def test_two_runs_with_one_port_are_both_seen_and_outlive_each_other(listen: str) -> None:
    with shown_at(listen, registry("b", 5)):
        with shown_at(listen, registry("a", 1)), shown_at(listen, registry("a", 2)):
            both = {'latent_run_tokens_total{table="a"} 3.0', 'latent_run_tokens_total{table="b"} 5.0'}
            assert told(listen) >= both | {'latent_run_workers{table="a"} 2.0'}, "counters add up, of a gauge the newest stands"
        assert told(listen) >= both, "the last figures of a run that is over are still seen"
    first, second = (exposition._Shown(listen, registry(table, 1)) for table in "cd")
    first.start()
    second.start()
    first.stop()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # the other one takes the port over
        try:
            assert 'latent_run_tokens_total{table="d"} 1.0' in told(listen)
            break
        except httpx.ConnectError:
            time.sleep(0.05)
    second.stop()
    with pytest.raises(httpx.ConnectError):
        told(listen)


def test_figures_of_a_process_long_gone_are_dropped(listen: str) -> None:
    with shown_at(listen, registry("old", 1)):
        pass
    (file,) = exposition._folder_of(int(listen.rpartition(":")[2])).glob("*.prom")
    os.utime(file, (1, 1))
    with shown_at(listen, registry("new", 1)):
        text = "\n".join(told(listen))
    assert ('table="new"' in text, 'table="old"' in text, file.exists()) == (True, False, False)


def test_a_port_of_another_program_is_one_line_and_no_failure(listen: str, caplog: pytest.LogCaptureFixture) -> None:
    host, _, port = listen.rpartition(":")
    with (
        http.server.HTTPServer((host, int(port)), http.server.BaseHTTPRequestHandler),
        caplog.at_level(logging.WARNING),
        shown_at(listen, registry("a", 1)),
        shown_at(listen, registry("b", 1)),
    ):
        pass
    assert (
        caplog.messages
        == [f"no figures for Prometheus: {listen} cannot be listened on (Address already in use): set [metrics] listen"] * 2
    )


def test_a_folder_of_another_user_is_not_trusted(listen: str) -> None:
    port = int(listen.rpartition(":")[2])
    exposition._folder_of(port).chmod(0o777)
    alone = exposition._folder_of(port)
    assert alone.name.startswith("latent-metrics-")
    assert str(port) not in alone.name


def test_a_night_that_was_over_before_a_scrape_is_seen_in_the_tables_figures(desk: Desk) -> None:
    assert 'latent_table_readable{table="docs"} 0.0' in of_table(desk)
    desk.write("a.jsonl", [{"id": str(i), "text": words(100 + i)} for i in range(4)] + [{"id": "bad", "text": None}])
    before = time.time()
    report = desk.embed()
    seen = of_table(desk)
    assert seen >= {
        'latent_table_readable{table="docs"} 1.0',
        'latent_last_run_status{status="done",table="docs"} 1.0',
        'latent_last_run_status{status="failed",table="docs"} 0.0',
        'latent_last_run_documents{state="added",table="docs"} 4.0',
        'latent_last_run_documents{state="quarantined",table="docs"} 1.0',
        'latent_last_run_chunks{kind="encoded",table="docs"} 4.0',
        f'latent_last_run_tokens{{table="docs"}} {float(report.tokens)}',
    }
    assert last_success(seen) >= before
    desk.write("b.jsonl", [{"id": "b", "text": words(1)}])

    def broken(*_: object) -> object:
        raise EngineError("no workers")

    with pytest.raises(EngineError):
        desk.embed(engine=broken)
    failed = of_table(desk)
    assert 'latent_last_run_status{status="failed",table="docs"} 1.0' in failed
    assert last_success(failed) == last_success(seen)


def test_a_run_that_never_had_the_table_to_itself_is_seen_as_failed(desk: Desk) -> None:
    desk.write("a.jsonl", [{"id": "a", "text": words(1)}])
    desk.embed()
    desk.write("b.jsonl", [{"id": "b", "text": words(2)}])
    with Lease(store_of(desk.config), "another"), pytest.raises(TableBusy):
        desk.embed()
    assert 'latent_table_readable{table="docs"} 1.0' in of_table(desk)
    newest = runs(desk.config)[0]["status"]
    assert f'latent_last_run_status{{status="{newest}",table="docs"}} 1.0' in of_table(desk)


def last_success(seen: set[str]) -> float:
    (line,) = [line for line in seen if line.startswith("latent_last_success_timestamp_seconds{")]
    return float(line.rpartition(" ")[2])


def test_a_night_with_nothing_to_do_is_a_success_too(desk: Desk) -> None:
    desk.write("a.jsonl", [{"id": "a", "text": words(1)}])
    first = desk.embed()
    maintenance.record_unchanged(desk.config, first)
    assert len(runs(desk.config)) == 1, "it is recorded already"
    before = last_success(of_table(desk))
    second = desk.embed()
    maintenance.record_unchanged(desk.config, second)
    newest, _ = runs(desk.config)
    assert (newest["run_id"], newest["status"], newest["table_version"]) == (second.run_id, "done", first.table_version)
    assert newest["report"]["documents"]["unchanged"] == 1
    assert last_success(of_table(desk)) > before


def test_a_short_run_leaves_its_figures_to_whoever_has_the_port(desk: Desk, listen: str) -> None:
    desk.write("a.jsonl", [{"id": str(i), "text": words(100 + i)} for i in range(4)])
    with shown_at(listen, CollectorRegistry()):
        report = run.embed(load(desk.config_path, {"metrics.listen": listen}), engine=HereAndNow)
        seen = told(listen)
    assert any(line.startswith('latent_run_tokens_total{table="docs"}') for line in seen)
    assert 'latent_run_workers{table="docs"} 0.0' in seen
    assert report.tokens > 0
