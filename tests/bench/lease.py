"""A week of a backfill that holds the lease, in fast time: the versions that its renewals leave, and how long `maintain` takes over them.

    .venv/bin/python tests/bench/lease.py [RENEWALS]       (five to ten minutes; 20160 by default, one each 30 s for a week)

Each renewal is the lease's own, only the wait between two is left out. Then every version counts as expired, and the table is maintained: once as the
renewals leave it, and once as they would if none were dropped.
"""

from __future__ import annotations

import datetime as dt
import sys
import tempfile
import time
from pathlib import Path

import lance

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import Desk, HereAndNow, save_small_model, words

from latent.ingest import maintenance
from latent.ingest.resolve import store_of
from latent.store import Lease, lease
from latent.store import version_history as history


def main(renewals: int) -> None:
    history.KEEP = history.KEEP_RUNS = dt.timedelta(0)
    lease.RENEW_S = 3600.0  # by itself: it would meet those that are made here
    print("| old signs of life | renewals | ms each | versions left | `maintain` s |\n|---|---:|---:|---:|---:|")
    for what, kept in (("dropped", lease.KEPT_SIGNS), ("all kept", renewals)):
        with tempfile.TemporaryDirectory() as folder:
            lease.KEPT_SIGNS = kept
            print("|", what, "|", " | ".join(measured(Path(folder), renewals)), "|", flush=True)


def measured(folder: Path, renewals: int) -> list[str]:
    desk = Desk(folder, folder / "config.toml")
    model = save_small_model(folder / "model")
    desk.config_path.write_text(f'[source]\nuri = "src/**"\n[model]\nname = "{model}"\n')
    desk.write("a.jsonl", [{"id": f"d{i}", "text": words(i, i + 1)} for i in range(100)])
    desk.embed(engine=HereAndNow)
    place = store_of(desk.config)
    with Lease(place, "week") as held:
        started = time.perf_counter()
        for _ in range(renewals):
            held.renew()
        each = (time.perf_counter() - started) / renewals
    left = len(lance.dataset(place.path("runs")).version_refs())
    started = time.perf_counter()
    maintenance.maintain(desk.config)
    return [str(renewals), f"{each * 1000:.1f}", str(left), f"{time.perf_counter() - started:.2f}"]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7 * 24 * 3600 // int(lease.RENEW_S))
