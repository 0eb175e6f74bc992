"""Runs on a cluster of real nodes, each on a machine of its own: the short version of `make cluster`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lan
import pytest

pytest.importorskip("moto")
MISSING = lan.missing()
pytestmark = [
    pytest.mark.timeout(900),  # a busy machine of two cores; two minutes and a half on a quiet one
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of one table and two runs: a node dies, one is cut off, one joins, then the head dies; the second run, round a new head, wants a GPU."""
    told = tmp_path_factory.mktemp("cluster") / "outcomes.json"
    program = Path(__file__).with_name("many_machines.py")
    command = [sys.executable, str(program), "--everything", "--json", str(told)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert told.exists(), done.stderr
    (outcome,) = json.loads(told.read_text())
    return outcome


def test_whatever_befalls_nodes_and_head_the_table_is_the_clean_runs_in_the_end(outcome: dict[str, Any]) -> None:
    assert (outcome["lost"], outcome["doubled"], outcome["wrong"]) == ([], [], [])


def test_a_node_that_joins_gets_work_and_the_shards_of_a_dead_one_are_done_by_others(outcome: dict[str, Any]) -> None:
    assert outcome["brought"].keys() >= {"5", "7", "8"}
    assert outcome["retries"] > 0


def test_a_run_that_loses_the_head_says_so_in_one_line(outcome: dict[str, Any]) -> None:
    assert "head of the Ray cluster at '10.77.0.3:6379' has not answered" in outcome["error"]
    assert "\n" not in outcome["error"]
