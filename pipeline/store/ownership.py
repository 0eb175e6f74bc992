"""Where the tables lie, and whose they are.

The main table has an identity, which stays with it through migrations and rollbacks. Each table beside it carries that identity as its owner mark.
Their names hold a dot, which no `[table] name` can have. A table without the right mark belongs to somebody else: it is not read, written, or dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import lance
import pyarrow as pa

from latent.errors import ForeignTable, TableMissing, shown
from latent.schemas import FILES, QUARANTINE, RUNS
from latent.store.failures import lance_errors

TABLE_KEY = b"latent.table"  # the main table's identity, made with it
OWNER_KEY = b"latent.owner"  # of a table beside it: the identity of the main table that it belongs to
SPEC_KEY = b"latent.spec"
# For an object store, under what [table] storage_options say. Lance's own defaults wait half an hour for a store that is silent. So: a listing 3 minutes,
# a read 2 minutes, a write 30 s; errors are asked again for some 10 s.
PATIENCE = {"timeout": "15s", "client_max_retries": "6", "client_retry_timeout": "20", "lance_aimd_max_retries": "0"}
Side = Literal["files", "quarantine", "runs"]
SIDES: dict[Side, pa.Schema] = {"files": FILES, "quarantine": QUARANTINE, "runs": RUNS}
Derived = Literal[
    "clusters", "assignments", "map", "duplicates", "redundant", "outliers", "analysis", "compressed", "codec"
]  # worked out from the main table
DERIVED: tuple[Derived, ...] = get_args(Derived)
NAMED: tuple[Side, ...] = ("files", "quarantine")  # change with the main table, in one commit; runs are a diary
SUCCESSOR = ".next"  # after the name of a table, and its identity: the table that a migration makes beside it
LOOKED_BACK = 100  # versions, for the newest one that latent made


@dataclass(frozen=True)
class Store:
    """Where the tables lie. A value: workers get a copy."""

    uri: str = field(repr=False)  # may hold credentials
    name: str
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def label(self) -> str:
        return f"table '{self.name}' at {shown(self.uri)}"

    @property
    def options(self) -> dict[str, str] | None:
        """What Lance is told of the store; None on a disk."""
        return PATIENCE | dict(self.storage_options) if "://" in self.uri else dict(self.storage_options) or None

    def table_name(self, side: Side | Derived | None = None) -> str:
        return f"{self.name}.{side}" if side else self.name

    def path(self, side: Side | Derived | None = None) -> str:
        return f"{self.uri.rstrip('/')}/{self.table_name(side)}.lance"

    @property
    def successor(self) -> Store:
        """The table that a migration makes beside this one."""
        return replace(self, name=self.name + SUCCESSOR)

    def open(
        self,
        side: Side | Derived | None = None,
        version: int | None = None,
        *,
        owner: str | None = None,
        any_maker: bool = False,
    ) -> lance.LanceDataset | None:
        """The table at a version, the newest by default; None where there is none yet. `owner`: the mark to expect, where it is known.

        Raises ForeignTable where another program made it, unless it may be of `any_maker`.
        """
        with lance_errors(f"{self.table_label(side)} cannot be opened"):
            try:
                table = lance.dataset(self.path(side), version=version, storage_options=self.options)
            except ValueError as error:
                if "was not found" in str(error):
                    return None
                raise
        if not any_maker:
            self._check_maker(table, side, version, owner)
        return table

    def opened(self, version: int | None = None, *, any_maker: bool = False) -> lance.LanceDataset:
        """The main table, its newest version by default. Raises TableMissing where there is none, ForeignTable."""
        if (table := self.open(version=version, any_maker=any_maker)) is None:
            raise TableMissing(f"no {self.label}: run 'latent run' first, or set [table] uri and name")
        return table

    def table_label(self, side: Side | Derived | None = None) -> str:
        return f"table '{self.table_name(side)}' at {shown(self.uri)}"

    def _check_maker(self, table: lance.LanceDataset, side: Side | Derived | None, version: int | None, owner: str | None) -> None:
        mark = mark_of(table)
        if side is None and not self.name.endswith(SUCCESSOR):
            if mark is None:
                self._refuse_main(table, version)
            return
        if mark is not None and ((side == "runs" and owner is None) or mark == (owner or identity_of(self))):
            return  # whose runs they are, is compared when a writer comes: its lease asks for them again and again
        got = "one of another program" if mark is None else "one that belongs to another table"
        raise ForeignTable(
            f"{self.table_label(side)}: expected a table that latent made beside '{self.name.removesuffix(SUCCESSOR)}', got {got}. "
            "Rename or drop it, or set [table] name to a new name"
        )

    def _refuse_main(self, table: lance.LanceDataset, version: int | None) -> None:
        ours = None if version else _newest_of_ours(table)
        if ours is None:
            raise ForeignTable(
                f"{self.label}: expected a table that latent made, got one of another program. Set [table] name to a new name"
            )
        raise ForeignTable(
            f"{self.label}: expected a table that latent made, got one that another program put in its place. "
            f"Run 'latent rollback {ours}' to have it back, or set [table] name to a new name"
        )


def mark_of(table: lance.LanceDataset) -> str | None:
    """The identity of a main table, or the owner mark of one beside it; None where latent did not make it."""
    words = table.schema.metadata or {}
    mark = words.get(TABLE_KEY) if SPEC_KEY in words else words.get(OWNER_KEY)
    return mark.decode() if mark else None


def identity_of(store: Store, version: int | None = None) -> str | None:
    """The identity of the main table, at a version. Where it is gone, the mark of what it left behind; None where there is nothing.

    Raises ForeignTable where another program made the main table.
    """
    if store.name.endswith(SUCCESSOR):
        return f"{identity_of(replace(store, name=store.name.removesuffix(SUCCESSOR)))}{SUCCESSOR}"
    if (table := store.open(version=version)) is not None:
        return mark_of(table)
    beside = (store.open(name, any_maker=True) for name in (*SIDES, *DERIVED))
    return next((mark for table in beside if table is not None and (mark := mark_of(table)) is not None), None)


def marked(rows: pa.Table, owner: str, words: Mapping[bytes, bytes] | None = None) -> pa.Table:
    """Rows of a table beside the main one, with its owner mark."""
    return rows.replace_schema_metadata({OWNER_KEY: owner.encode(), **(words or {})})


def _newest_of_ours(table: lance.LanceDataset) -> int | None:
    refs = [ref["version"] for ref in table.version_refs()][::-1]
    return next((v for v in refs[:LOOKED_BACK] if mark_of(table.checkout_version(v)) is not None), None)


def drop_tables(store: Store, sides: Sequence[Side | Derived | None]) -> None:
    """Remove tables whose marks were looked at, files and all. Under the lease."""
    import lancedb

    if not sides:
        return
    with lance_errors(f"{store.label} cannot be removed"):
        connection = lancedb.connect(store.uri, storage_options=store.options)
        for side in sides:
            connection.drop_table(store.table_name(side), ignore_missing=True)
