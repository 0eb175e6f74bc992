"""Small inputs that once failed, each in a folder of tests/cases: the command, and its right outcome."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import HereAndNow, Latent, Said

from latent.config import load
from latent.ingest import maintenance, run

CASES = Path(__file__).parent / "cases"


@dataclass(frozen=True)
class Case:
    """A copy of a case's folder, with the small model in place of the default one."""

    folder: Path
    latent: Latent
    model: str

    def command(self, *arguments: str) -> Said:
        return self.latent(self.folder, *arguments, "--config", "c.toml", "--json", "--model.name", self.model)

    def plan(self, *arguments: str) -> dict:
        return self.command("plan", *arguments).answer

    def embed(self, **settings: object) -> dict:
        """What `latent run` does, with workers in this process."""
        config = load(self.folder / "c.toml", {"model.name": self.model} | settings)
        report = run.embed(config, engine=HereAndNow)
        maintenance.maintain(config)
        return {"documents": report.documents, "chunks": report.chunks}

    def documents(self) -> dict[str, dict]:
        """Id → its row in the table."""
        table = run.store_of(load(self.folder / "c.toml")).opened().to_table()
        return {row["doc_id"]: row for row in table.to_pylist()}

    def quarantine(self) -> dict[str, str]:
        """Id or file → reason."""
        state = run.store.load_state(run.store_of(load(self.folder / "c.toml")))
        return {row["doc_id"] or row["source_file"]: row["reason"] for row in state.quarantine.to_pylist()}

    def found(self, query: str) -> list[str]:
        """Ids that a search by words finds, best first."""
        return [hit["doc_id"] for hit in self.command("search", "--mode", "text", query).answer["hits"]]


@pytest.fixture
def case(tmp_path: Path, latent: Latent, small_model: Path) -> Callable[[str], Case]:
    def copy(name: str) -> Case:
        folder = tmp_path / name
        shutil.copytree(CASES / name, folder)
        return Case(folder, latent, str(small_model))

    return copy


def counts(report: dict) -> tuple[int, int, int]:
    """Added, changed, in quarantine."""
    documents = report["documents"]
    return documents["added"], documents["changed"], documents["quarantined"]


def test_words_inside_a_chinese_or_japanese_clause_are_found(case: Callable[[str], Case]) -> None:
    made = case("cjk-words")
    made.embed()
    for query, document in {"北京大学": "zh", "学习": "zh", "機械学習": "ja", "人工知能": "ja"}.items():
        assert made.found(query)[:1] == [document], query


def test_a_config_that_begins_with_a_byte_order_mark_is_read(case: Callable[[str], Case]) -> None:
    made = case("config-with-bom")
    assert (made.folder / "c.toml").read_bytes().startswith(b"\xef\xbb\xbf")
    assert counts(made.plan()) == (1, 0, 0)


def test_a_csv_column_of_phone_numbers_is_text(case: Callable[[str], Case]) -> None:
    made = case("csv-phone-plus")
    made.embed()
    assert {name: row["phone"] for name, row in made.documents().items()} == {"1": "+4912345", "2": "+4954321", "3": "7"}


def test_a_csv_column_of_version_numbers_is_text(case: Callable[[str], Case]) -> None:
    made = case("csv-version-number")
    made.embed()
    assert {name: row["v"] for name, row in made.documents().items()} == {"1": "3.10", "2": "3.1"}


@pytest.mark.parametrize(("setting", "value"), [("table.name", "2024"), ("table.name", "true"), ("source.id", "0")])
def test_a_flag_of_a_text_setting_takes_the_text_as_typed(case: Callable[[str], Case], setting: str, value: str) -> None:
    columns = () if setting == "source.id" else ("--source.id", "0")
    made = case("flag-that-looks-like-a-number")
    (made.folder / "src" / "a.jsonl").write_text(json.dumps({"0": "1", "text": "w1"}) + "\n")
    assert counts(made.plan(f"--{setting}", value, *columns)) == (1, 0, 0)


def test_a_number_that_does_not_fit_its_column_is_quarantined(case: Callable[[str], Case]) -> None:
    made = case("float-into-int")
    made.embed()
    shutil.copy(made.folder / "day2.jsonl", made.folder / "src" / "b.jsonl")
    made.embed()
    assert {name: row["rating"] for name, row in made.documents().items()} == {f"d{n}": n for n in range(5)}
    reasons = made.quarantine()
    assert reasons.keys() == {"n1", "n2"}
    assert "rating" in reasons["n1"]
    assert "4.9" in reasons["n1"]
    assert "True" in reasons["n2"]
    assert made.command("verify").answer["ok"]


def test_a_metadata_key_that_no_row_has_is_an_error(case: Callable[[str], Case]) -> None:
    said = case("jsonl-metadata-typo").command("plan")
    assert said.code == 1
    assert "yaer" in json.loads(said.out)["error"]


def test_a_key_that_a_whole_file_leaves_out_is_null(case: Callable[[str], Case]) -> None:
    made = case("jsonl-optional-title")
    made.embed()
    assert {name: row["text"] for name, row in made.documents().items()} == {
        "1": "T\n\nhello",
        "2": "no title",
        "3": "no title here either",
    }


def test_metadata_named_in_another_order_changes_nothing(case: Callable[[str], Case]) -> None:
    made = case("metadata-named-in-another-order")
    made.embed()
    report = made.plan("--source.metadata", '["b","a"]')
    assert counts(report) == (0, 0, 0)
    assert report["documents"]["unchanged"] == 3


def test_one_more_metadata_column_encodes_nothing(case: Callable[[str], Case]) -> None:
    made = case("one-more-metadata-column")
    made.embed()
    report = made.embed(**{"source.metadata": ["a", "lang"]})
    assert (report["documents"].changed, report["chunks"].encoded, report["chunks"].reused) == (1, 0, 1)
    row = made.documents()["1"]
    assert (row["a"], row["lang"]) == (2, "en")


def test_a_parquet_file_with_a_column_twice_is_named_in_one_line(case: Callable[[str], Case]) -> None:
    made = case("parquet-column-twice")
    said = made.command("plan")
    line = json.loads(said.out)["error"] if said.code else json.dumps(made.embed() and made.quarantine())
    assert "a.parquet" in line
    assert "text" in line
    assert "Traceback" not in said.err


def test_a_parquet_column_of_no_type_is_looked_for_in_the_next_file(case: Callable[[str], Case]) -> None:
    made = case("parquet-null-typed-first-file")
    made.embed()
    assert {name: row["year"] for name, row in made.documents().items()} == {"1": None, "2": 2020}
    assert [hit["doc_id"] for hit in made.command("search", "w1", "--where", "year > 2019").answer["hits"]] == ["2"]


def test_a_uuid_is_an_id_as_it_is_written(case: Callable[[str], Case]) -> None:
    made = case("parquet-uuid-id")
    made.embed()
    assert made.documents().keys() == {f"00000000-0000-0000-0000-{n:012}" for n in (1, 2)}


def test_semicolons_and_tabs_separate_cells(case: Callable[[str], Case]) -> None:
    made = case("semicolons")
    made.embed()
    assert {name: row["text"] for name, row in made.documents().items()} == {"1": "hello, world", "2": "hello"}


def test_links_that_lead_back_to_their_folder_are_not_followed(case: Callable[[str], Case]) -> None:
    made = case("two-links-to-the-folder")
    for name in ("latest", "stable", "newest"):
        (made.folder / "src" / name).symlink_to(".")
    made.embed()
    assert made.documents().keys() == {"a.md"}


def test_text_without_a_mark_that_holds_nul_is_quarantined(case: Callable[[str], Case]) -> None:
    made = case("utf16-text-without-mark")
    made.embed()
    assert made.documents().keys() == {"c.txt"}
    assert all("not text" in reason for reason in made.quarantine().values())
    assert made.quarantine().keys() == {"a.txt", "b.txt"}


def test_words_of_more_than_forty_letters_are_found_and_verified(case: Callable[[str], Case]) -> None:
    made = case("verify-false-alarm-long-token")
    made.embed()
    assert made.command("verify").answer["ok"]
    for line in (made.folder / "src" / "a.jsonl").read_text().splitlines()[1:]:
        document = json.loads(line)
        assert made.found(document["text"]) == [document["id"]]
