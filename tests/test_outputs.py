"""Files that commands write: another program's file stays, an earlier one of ours is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Desk, Latent

from latent.errors import ConfigError
from latent.evaluation.evaluator import Evaluation, write_by_query
from latent.outputs import MARK, require_replaceable

ASKED = [
    ("map.png", ["map"]),
    ("photo.svg", ["map", "--picture", "photo.svg"]),
    ("site/index.html", ["map", "--html", "site"]),
    ("site/notes.txt", ["map", "--html", "site"]),
    ("curve.pdf", ["compress", "--picture", "curve.pdf"]),
    ("minutes.html", ["drift", "--report", "minutes.html"]),
    ("queries.csv", ["evaluate", "--self", "--per-query", "queries.csv"]),
    ("prefect.yaml", ["init", "src", "--config", "prefect.yaml"]),
]


@pytest.mark.parametrize(("name", "command"), ASKED)
def test_a_file_of_the_users_stays_and_the_command_says_so_before_the_work(
    desk: Desk, latent: Latent, name: str, command: list[str]
) -> None:
    file = desk.folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("query,text\nmine\n")
    done = latent(desk.folder, *command)
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert "emove it, or name another" in done.err
    assert file.read_text() == "query,text\nmine\n"


@pytest.mark.parametrize("command", [["evaluate", "--self", "--per-query"], ["drift", "--report"], ["map", "--html"]])
def test_a_place_below_a_file_is_refused_before_the_work(desk: Desk, latent: Latent, command: list[str]) -> None:
    done = latent(desk.folder, *command, "config.toml/below/x.csv")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert f"{command[-1]} config.toml/below/x.csv: expected a folder that can be written to" in done.err


@pytest.mark.parametrize("place", ["nowhere/c.toml", "config.toml/c.toml"])
@pytest.mark.parametrize("documents", ["src", "--sample"])
def test_a_config_is_not_written_where_there_is_no_folder(desk: Desk, latent: Latent, documents: str, place: str) -> None:
    done = latent(desk.folder, "init", documents, "--config", place)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert f"--config {place}: there is no folder" in done.err
    assert not (desk.folder / "nowhere").exists()


def test_the_measures_of_an_earlier_evaluation_are_replaced(tmp_path: Path) -> None:
    done = Evaluation({"ndcg@10": 1.0, "mrr@10": 1.0}, 1, {}, {"q": {"ndcg@10": 1.0, "mrr@10": 1.0}})
    for _ in range(2):
        write_by_query(tmp_path / "new" / "each.csv", done)
    (tmp_path / "qrels.csv").write_text("query,document,relevance\n")
    with pytest.raises(ConfigError, match=r"--per-query .*qrels.csv: expected a new name"):
        write_by_query(tmp_path / "qrels.csv", done)


def test_a_folder_is_replaced_when_it_is_empty_or_its_page_is_ours(tmp_path: Path) -> None:
    require_replaceable(tmp_path, "--html")
    (tmp_path / "index.html").write_text(f"<html></html><!-- {MARK} -->")
    require_replaceable(tmp_path, "--html")
