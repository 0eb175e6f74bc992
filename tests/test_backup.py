"""A copy of the table, made while a run writes, restored in another kind of place and back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import lance
import lancedb
import pyarrow as pa
import pytest
from conftest import Desk, HereAndNow, Latent, words
from s3 import ENVIRONMENT, PATIENCE, Proxy, S3Server, since

from latent import store
from latent.errors import ForeignTable, StoreError
from latent.ingest import maintenance, run
from latent.ingest.resolve import store_of
from latent.ingest.verify import verify
from latent.store import Store
from latent.store import version_history as history

pytest.importorskip("moto")


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """Storage options for s3://copies, an empty bucket."""
    with pytest.MonkeyPatch.context() as patch, S3Server() as server:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        assert server.ask("PUT", "copies")[0] == 200
        yield {
            "aws_endpoint": f"http://127.0.0.1:{server.port}",
            "allow_http": "true",
            "aws_virtual_hosted_style_request": "false",
        }


@pytest.fixture
def full(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A table of 30 documents, and another 30 to do, one a shard and a commit."""
    monkeypatch.setattr(run, "COMMIT_S", 0.0)
    monkeypatch.setattr("latent.ingest.plan.SHARD_DOCUMENTS", 1)
    documents = [{"id": f"d{i}", "text": words(i, i + 1)} for i in range(20, 80)]
    desk.write("a.jsonl", documents[:30])
    desk.embed()
    desk.write("b.jsonl", documents[30:])
    return desk


def at(desk: Desk, uri: str, options: dict[str, str] | None = None) -> Desk:
    """The same source, the table elsewhere."""
    config = desk.folder / f"{abs(hash(uri))}.toml"
    told = f"storage_options = {{{', '.join(f'{k} = {json.dumps(v)}' for k, v in (options or {}).items())}}}\n"
    config.write_text(f"{desk.config_path.read_text()}[table]\nuri = {json.dumps(uri)}\n{told}")
    return Desk(desk.folder, config)


def sound(desk: Desk) -> bool:
    failed = [check for check in verify(desk.config) if not check.ok]
    assert failed == []
    return True


def test_a_copy_leaves_out_a_version_that_no_reader_sees(full: Desk, tmp_path: Path) -> None:
    """Such as the one that words are indexed over."""
    table = store_of(full.config).opened()
    fragments = [fragment.metadata for fragment in table.get_fragments()]
    lance.LanceDataset.commit(table, lance.LanceOperation.Merge(fragments, table.schema), read_version=table.version, detached=True)
    copy = at(full, str(tmp_path / "copy"))
    made = store.back_up(store_of(full.config), store_of(copy.config))
    assert made.table_version == table.version
    assert sound(copy)
    assert not list((tmp_path / "copy/docs.lance/_versions").glob("d*"))


def test_a_copy_made_while_a_run_writes_is_whole_in_a_bucket_and_back_on_a_disk(
    full: Desk, bucket: dict[str, str], tmp_path: Path
) -> None:  # 20 s: each commit of the run meets a copy that is being made
    place, copies = store_of(full.config), Store("s3://copies/lake", "docs", bucket)

    class Copied(HereAndNow):
        def work(self, shards):
            for number, outcome in enumerate(super().work(shards)):
                if number == 15:
                    copier = threading.Thread(target=lambda: made.append(store.back_up(place, copies)))
                    copier.start()
                yield outcome
                if number == 20:
                    copier.join()

    made: list[store.Backup] = []
    full.embed(engine=Copied)
    restored = at(full, "s3://copies/lake", bucket)
    held = {key[0] for key in restored.rows()}
    assert 30 < len(held) < 60
    assert sound(restored)
    report = restored.embed()
    assert (report.documents.added, report.documents.unchanged) == (60 - len(held), len(held))
    assert restored.rows() == full.rows()
    back = at(full, str(tmp_path / "back"))
    store.back_up(store_of(restored.config), store_of(back.config))
    assert back.rows() == full.rows()
    assert sound(back)
    assert back.embed(engine=None).documents.unchanged == 60


def test_a_copy_is_brought_up_to_date_by_what_is_new_and_loses_what_the_table_dropped(
    full: Desk, tmp_path: Path, latent: Latent, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = at(full, str(tmp_path / "copy"))
    first = latent(full.folder, "backup", tmp_path / "copy", "--json").answer
    assert first["table_version"] == store_of(full.config).opened().version
    assert first["tables"] == ["docs", "docs.files", "docs.quarantine", "docs.runs"]
    full.embed()
    monkeypatch.setattr(history, "KEEP", history.KEEP * 0)
    maintenance.maintain(full.config)
    second = latent(full.folder, "backup", tmp_path / "copy", "--json").answer
    assert second["files_removed"] > 10
    assert copy.rows() == full.rows()
    assert sound(copy)
    third = latent(full.folder, "backup", tmp_path / "copy", "--json").answer
    assert (third["files_copied"], third["files_removed"]) == (0, 0)


def test_a_copy_that_is_cut_short_leaves_the_one_before(full: Desk, bucket: dict[str, str]) -> None:
    place = store_of(full.config)
    with Proxy(int(bucket["aws_endpoint"].rpartition(":")[2])) as proxy:
        options = bucket | PATIENCE | {"aws_endpoint": f"http://127.0.0.1:{proxy.port}"}
        copy = at(full, "s3://copies/cut", options)
        store.back_up(place, store_of(copy.config))
        before = copy.rows()
        full.embed()
        with proxy.faulty(since("403", "PUT", r"/docs\.files\.lance/_versions/")), pytest.raises(StoreError, match="ExpiredToken"):
            store.back_up(place, store_of(copy.config))
        assert copy.rows() == before
        assert sound(copy)
        store.back_up(place, store_of(copy.config))
        assert copy.rows() == full.rows()


def test_nothing_but_an_earlier_copy_is_written_over(full: Desk, tmp_path: Path) -> None:
    place = store_of(full.config)
    (tmp_path / "link").symlink_to(place.uri)
    for uri in (place.uri, str(tmp_path / "link")):
        with pytest.raises(StoreError, match="expected another place for the copy, got its own"):
            store.back_up(place, Store(uri, "docs"))
    lancedb.connect(tmp_path / "theirs").create_table("docs", pa.table({"a": [1]}))
    with pytest.raises(ForeignTable, match=r"expected nothing, or an earlier copy of .*, got another table. Name another place"):
        store.back_up(place, Store(str(tmp_path / "theirs"), "docs"))
    used = at(full, str(tmp_path / "used"))
    store.back_up(place, store_of(used.config))
    used.embed()
    with pytest.raises(ForeignTable, match="got one that was written to"):
        store.back_up(place, store_of(used.config))
    assert sound(full)
    assert sound(used)
