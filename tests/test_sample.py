"""The sample corpus, and a first config for documents of one's own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latent.config import Config, load, render
from latent.errors import ConfigError, PipelineError, SourceError
from latent.scaffold.config_file import config_for
from latent.scaffold.sample_corpus import write_sample
from latent.sources import Reader, list_files, locate, metadata_schema

SECRET = "hunter2-of-this-process"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample, written by a process with a secret in its environment."""
    folder = tmp_path_factory.mktemp("sample") / "data/sample"
    os.environ["LATENT_TEST_SECRET"] = SECRET
    try:
        assert write_sample(folder) == sum(len(path.read_text().splitlines()) for path in folder.iterdir())
    finally:
        del os.environ["LATENT_TEST_SECRET"]
    return folder


def documents(corpus: Path) -> list[dict[str, str]]:
    return [json.loads(line) for path in sorted(corpus.iterdir()) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_sample_is_thousands_of_documents_each_with_an_id_of_its_own(corpus):
    found = documents(corpus)
    assert len(found) >= 3000
    assert len({d["id"] for d in found}) == len(found)
    assert all(set(d) == {"id", "text", "module", "kind"} and all(d.values()) for d in found)


def test_the_samples_kinds_are_the_five(corpus):
    assert {d["kind"] for d in documents(corpus)} == {"topic", "module", "class", "function", "method"}


def test_the_sample_has_an_answer_to_how_do_i_parse_a_date(corpus):
    (entry,) = [d for d in documents(corpus) if d["id"] == "datetime.datetime.strptime"]
    assert "parsed from a string" in entry["text"]
    assert (entry["module"], entry["kind"]) == ("datetime", "method")


def test_the_sample_tells_nothing_of_the_process_that_wrote_it(corpus):
    told = {d["id"] for d in documents(corpus) for private in (SECRET, sys.executable, " at 0x") if private in d["text"]}
    assert told == set()


def test_the_sample_is_read_whole_with_the_settings_that_init_guesses(corpus):
    source = config_for(str(corpus), corpus.parent).source
    origin = locate(str(corpus))
    reader = Reader(origin, source.format, source, pa.schema([]))
    problems = [p for file in list_files(origin, "auto").files for b in reader.batches(file) for p in b["problem"].to_pylist()]
    assert problems == [None] * len(documents(corpus))


def test_writing_the_sample_again_leaves_an_edited_file_alone_and_brings_a_missing_one_back(corpus):
    edited, missing = corpus / "json.jsonl", corpus / "csv.jsonl"
    before, lost = edited.read_text(), missing.read_text()
    edited.write_text('{"id": "mine", "text": "edited"}\n')
    missing.unlink()
    try:
        write_sample(corpus)
        assert edited.read_text() == '{"id": "mine", "text": "edited"}\n'
        assert missing.read_text() == lost
    finally:
        edited.write_text(before)


# --- init -----------------------------------------------------------------------------------------------------------


def made(folder: Path, name: str, columns: list[str]) -> Path:
    """A file of one row with these columns."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {column: f"some {column}" for column in columns}
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist([row]), path)
    elif name.endswith(".csv"):
        path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    else:
        path.write_text(json.dumps(row) + "\n" if name.endswith(".jsonl") else "plain")
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet"])
@pytest.mark.parametrize(
    ("columns", "id", "text"),
    [
        (["id", "text"], "id", "text"),
        (["extra", "Body", "DOC_ID"], "DOC_ID", "Body"),
        (["url", "id", "content", "summary"], "id", "content"),
        (["key", "title", "abstract"], "key", ["title", "abstract"]),
    ],
)
def test_init_guesses_the_columns_of_id_and_text(tmp_path, name, columns, id, text):
    guessed = config_for(str(made(tmp_path, name, columns)), tmp_path).source
    assert (guessed.id, guessed.text, guessed.uri) == (id, text, name)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_init_reads_past_a_byte_order_mark(tmp_path, name):
    path = made(tmp_path, name, ["id", "text"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert config_for(str(path), tmp_path).source.id == "id"


@pytest.mark.parametrize("place", ["docs", "docs/", "docs/**/*.md", "docs/a.md", "../outside", "docs/t.jsonl", "docs/*.jsonl"])
@pytest.mark.parametrize("start", ["home", "home/docs"])
def test_the_config_that_init_writes_names_the_same_files_from_wherever_it_was_called(tmp_path, monkeypatch, place, start):
    home = tmp_path / "home"
    for name in ("docs/a.md", "docs/s/b.md", "docs/t.jsonl", "../outside/c.txt"):
        made(home, name, ["id", "text"])
    monkeypatch.chdir(tmp_path / start)
    path = os.path.relpath(home / place)
    (home / "config.toml").write_text(render(config_for(path, home)), encoding="utf-8")
    monkeypatch.chdir("/")
    source = load(home / "config.toml").source
    origin, meant = locate(source.uri), locate(str(home / place))
    files = list_files(origin, source.format).files
    assert files == list_files(meant, "auto").files != ()
    reader = Reader(origin, source.format, source, metadata_schema(origin, source.format, source, files))
    assert [problem for file in files for b in reader.batches(file) for problem in b["problem"].to_pylist()] == [None] * len(files)


@pytest.mark.parametrize(
    ("name", "place", "table"),
    [
        ("handbook/a/b.md", "handbook/**/*.md", "handbook"),
        ("handbook/a/b.md", "handbook/", "handbook"),
        ("my docs (new)/b.md", "my docs (new)", "my-docs-new"),
        ("B\u00fccher/b.md", "B\u00fccher", "Bucher"),
        ("\u6587\u66f8/b.md", "\u6587\u66f8", "docs"),
        ("data/2024.01.jsonl", "data/2024.01.jsonl", "2024"),
        ("-_x/b.md", "-_x", "x"),
        (f"{'x' * 80}/b.md", "x" * 80, "x" * 64),
        ("a/b.md", "*/b.md", "home"),
    ],
)
def test_init_names_the_table_after_the_path(tmp_path, name, place, table):
    home = tmp_path / "home"
    home.mkdir()
    made(home, name, ["id", "text"])
    config = config_for(str(home / place), home)
    assert config.table.name == table
    assert Config.model_validate(config.model_dump()) == config


def test_a_second_init_in_a_folder_names_a_table_of_its_own(tmp_path, latent):
    for name in ("x/docs/a.md", "y/docs/a.md"):
        made(tmp_path, name, ["id", "text"])
    names = [
        latent(tmp_path, "init", place, "--config", f"{number}.toml", "--json").answer["table"]
        for number, place in enumerate(["x/docs", "y/docs", "x", "x/docs/", "y/docs"])
    ]
    assert names == ["docs", "docs-2", "x", "docs", "docs-2"]


def test_init_leaves_the_names_of_tables_of_other_sources(tmp_path, desk_for):
    desk = desk_for(tmp_path)
    desk.write("a.jsonl", [{"id": "x", "text": "w1"}])
    desk.embed()
    desk.config_path.unlink()
    made(tmp_path, "docs/a.md", [])
    assert config_for(str(tmp_path / "docs"), tmp_path).table.name == "docs-2"
    assert config_for(str(desk.source / "**"), tmp_path).table.name == "src"


@pytest.mark.parametrize(
    ("name", "columns", "error", "said"),
    [
        ("docs/x.pdf", [], SourceError, "no parquet, jsonl, csv, text or markdown file"),
        ("elsewhere/x.md", [], SourceError, "no such file or folder"),
        ("docs/x.csv", ["number", "text"], ConfigError, "none of its columns (number, text) looks like an id"),
        ("docs/x.jsonl", ["id", "number"], ConfigError, "none of its columns (id, number) looks like the text"),
        ("docs/x.csv", [], SourceError, "x.csv: expected rows with columns, got none"),
    ],
    ids=["no-files", "no-folder", "no-id", "no-text", "no-columns"],
)
def test_init_says_in_one_line_what_it_does_not_find(tmp_path, name, columns, error, said):
    made(tmp_path, name, columns)
    with pytest.raises(error) as caught:
        config_for(str(tmp_path / "docs"), tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl.gz"])
def test_init_says_in_one_line_that_a_file_is_damaged(tmp_path, name):
    (tmp_path / name).write_bytes(b"damaged, whatever it was")
    with pytest.raises(PipelineError) as caught:
        config_for(str(tmp_path / name), tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_init_looks_past_files_that_are_odd_or_damaged(tmp_path):
    for name, data in {"a.parquet": b"PAR1", "b.csv": b"key,value\n", "c.jsonl.gz": b"cut off", "d.csv": b"ID;Body;n\n"}.items():
        (tmp_path / name).write_bytes(data)
    guessed = config_for(str(tmp_path), tmp_path).source
    assert (guessed.id, guessed.text) == ("ID", "Body")
