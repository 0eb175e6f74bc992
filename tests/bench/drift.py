"""Is there an alarm where nothing moved, and none where something did? Random halves of a corpus as two versions of a table, again and again; then with one document in twenty of another
corpus in the second; then a half that only such documents join.

    python tests/bench/drift.py BODY.toml FOREIGN.toml

Both configs name tables that `latent run` made; the tables here are made beside the first one's, in a folder that is gone afterwards.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latent import load
from latent.analysis.drift.compare_versions import Drift, drift
from latent.config import Config
from latent.ingest.resolve import store_of

TRIES = 20
FOREIGN = 0.05


def half(rows: pa.Table, documents: np.ndarray) -> pa.Table:
    return rows.filter(pc.is_in(rows["doc_id"], value_set=pa.array(documents)))


def moved(config: Config, before: pa.Table, now: pa.Table) -> Drift:
    with tempfile.TemporaryDirectory() as folder:
        lance.write_dataset(before, f"{folder}/docs.lance")
        lance.write_dataset(now, f"{folder}/docs.lance", mode="overwrite")
        return drift(config.model_copy(update={"table": config.table.model_copy(update={"uri": folder, "name": "docs"})}), "1")


def main() -> None:
    config, other = (load(Path(name)) for name in sys.argv[1:3])
    rows, strange = (store_of(each).opened().to_table() for each in (config, other))
    common = [name for name in rows.schema.names if name in strange.schema.names]
    rows, strange = rows.select(common), strange.select(common)
    names, foreign = (np.array(sorted(set(table["doc_id"].to_pylist()))) for table in (rows, strange))
    chance = np.random.default_rng(7)
    for share, joins in ((0.0, False), (FOREIGN, False), (FOREIGN, True)):
        alarms, least, told = 0, 1.0, []
        for _ in range(TRIES):
            one, two = np.array_split(chance.permutation(names), 2)
            some = chance.permutation(foreign)[: round(share * len(two))]
            others = one if joins else two[len(some) :]
            now = pa.concat_tables([half(rows, others), half(strange, some)])
            found = moved(config, half(rows, one), now.replace_schema_metadata(rows.schema.metadata))
            alarms += found.alarm
            least = min(least, found.strangers.p, found.shares.p)
            told.append(found.strangers.share)
        how = f"{share:.0%} foreign {'join' if joins else 'among'} {len(others)}"
        print(
            f"{how}: {alarms} alarms in {TRIES} tries, least p {least:.2g}, strangers {min(told):.1%} to {max(told):.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
