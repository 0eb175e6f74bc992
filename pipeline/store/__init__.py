"""The table: open, state, fragments, commit, lease, indexes, search. The only room with Lance in it.

What a reader sees at any instant is one version of the table, in which each document is whole: all its chunks before a change, or all
after it. Workers write fragments that no version names. One writer, under the lease, makes a version that takes replaced rows out and fragments
in. Each commit carries its name in the version's transaction, and is looked for there before it is tried again, since Lance would
apply it twice. What a killed run leaves behind are fragments nobody sees; `maintain` removes them once they are a week old.

`tables` opens and describes; `commits` changes rows; `lease` keeps a second writer out; `indexes` builds, tunes and searches.
"""

from pipeline.store.commits import Commit, commit_rows, vectors_of, write_fragments
from pipeline.store.indexes import Tuning, index_names, maintain, read_tuning, vector_search
from pipeline.store.lease import Lease
from pipeline.store.tables import Store, create, held_documents, metadata_fields, read_side, replace_side, spec_of, write_run

__all__ = [
    "Commit",
    "Lease",
    "Store",
    "Tuning",
    "commit_rows",
    "create",
    "held_documents",
    "index_names",
    "maintain",
    "metadata_fields",
    "read_side",
    "read_tuning",
    "replace_side",
    "spec_of",
    "vector_search",
    "vectors_of",
    "write_fragments",
    "write_run",
]
