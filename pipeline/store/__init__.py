"""The table: open, state, fragments, commit, lease, history, indexes, search. The only room with Lance in it.

The promise. **A reader** who opens the table at any instant sees one version of it, in which each document is whole: all its chunks as they were
before a change, or all as they are after it; never twice, never half, and not missing while the source holds it. File states and quarantine change in the same
instant, for a version names those that belong to it. **After a crash**, at any point and of any process, that still holds, and the next run does what
was left: what had been committed is found unchanged, what had not is invisible. **A retry** of a commit whose answer was lost finds it there by its name, since
Lance would apply it twice. **Two runs at once**: one has the lease, the other stops before it writes. A holder that was paused and succeeded meanwhile cannot
commit: its successor's fence conflicts with it, on a disk as on an object store, whatever the clocks say.

Not promised: rows that other programs write to these tables (a run that meets them stops; `verify` names them), side tables opened by themselves (their newest
version may be ahead of the main table's by one commit), file systems without atomic rename or stores without conditional put, a table whose files are copied
while a run writes, but by `back_up`.

`ownership` says where tables lie and whose they are; `tables` makes and describes them; `commits` changes rows, `columns` what they hold; `lease` keeps a second writer out,
`courtesy` lets one pass; `history` goes back and cleans up; `indexes` are kept beside the rows, with the recall that `tuning` measures; `word_index` is the one of words, `folding` its forms of them;
`reading` is a version open for searches; `derived` are tables worked out from it; `backup` copies them all; `failures` puts what Lance raises in one line.
"""

import os

os.environ.setdefault("LANCE_LOG", "error")  # before they are imported: they warn of empty parts of indexes and the like
os.environ.setdefault("LANCEDB_LOG", "error")

from latent.store.backfill_lock import BackfillLock, MigrationLock, backfilling_since, is_paused, pause
from latent.store.backup import Backup, back_up
from latent.store.columns import adapt, metadata_fields, source_of
from latent.store.commits import CommitResult, TableUpdate, commit, vectors_of, write_fragments
from latent.store.conditions import Condition
from latent.store.dataset import (
    QuerySettings,
    State,
    canary_of,
    create,
    former_specs,
    load_state,
    query_settings_of,
    read_runs,
    rows_committed,
    spec_of,
    write_canary,
    write_runs,
)
from latent.store.derived import (
    Codes,
    DerivedTable,
    batches,
    check_derived,
    drawn,
    read_codes,
    read_derived,
    redundant_documents,
    rows_at,
    same_rows,
    write_codes,
    write_derived,
)
from latent.store.failures import lance_errors
from latent.store.full_text_index import WordIndexing
from latent.store.full_text_settings import FullTextSettings
from latent.store.indexes import Index, indexes, missed_by_indexes, update_indexes
from latent.store.lease import Lease, new_run_id
from latent.store.ownership import Side, Store
from latent.store.reader import FEW_ROWS, RESCORED, TableReader, Tuning, matrix, read_tuning
from latent.store.version_history import (
    Version,
    drop_all,
    exclusive_writer,
    foreign_changes,
    orphaned_files,
    replace_table,
    restore,
    vacuum,
    versions,
)

__all__ = [
    "FEW_ROWS",
    "RESCORED",
    "BackfillLock",
    "Backup",
    "Codes",
    "CommitResult",
    "Condition",
    "DerivedTable",
    "FullTextSettings",
    "Index",
    "Lease",
    "MigrationLock",
    "QuerySettings",
    "Side",
    "State",
    "Store",
    "TableReader",
    "TableUpdate",
    "Tuning",
    "Version",
    "WordIndexing",
    "adapt",
    "back_up",
    "backfilling_since",
    "batches",
    "canary_of",
    "check_derived",
    "commit",
    "create",
    "drawn",
    "drop_all",
    "exclusive_writer",
    "foreign_changes",
    "former_specs",
    "indexes",
    "is_paused",
    "lance_errors",
    "load_state",
    "matrix",
    "metadata_fields",
    "missed_by_indexes",
    "new_run_id",
    "orphaned_files",
    "pause",
    "query_settings_of",
    "read_codes",
    "read_derived",
    "read_runs",
    "read_tuning",
    "redundant_documents",
    "replace_table",
    "restore",
    "rows_at",
    "rows_committed",
    "same_rows",
    "source_of",
    "spec_of",
    "update_indexes",
    "vacuum",
    "vectors_of",
    "versions",
    "write_canary",
    "write_codes",
    "write_derived",
    "write_fragments",
    "write_runs",
]
