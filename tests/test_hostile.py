"""Every command on texts, ids, metadata and file names that break terminals, markup, JSON or pictures: no traceback, and nothing that acts."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from conftest import Desk, Latent, words

from latent.ingest import maintenance

HOSTILE = (
    "[/b]",
    "[optional] [red]x[/red] [link=http://x]y",
    ":smile: {x} %s %n",
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b2J\x90q\x9c",
    "txt\u202egpj.exe\u2066",
    "a\u200bb\ufeff\u00ad",
    "line\nbreak\r\n\x0b\x0c\x1c\x85\u2028 1  0.999  forged",
    "\x00nul\x7f",
    "$\\frac{$ x_^ $$",
    "<script>alert(1)</script> </div> &amp;",
    "'; DROP TABLE docs; -- \"",
    "漢字 🙂👩\u200d🔬 e\u0301 עברית العربية",
    "=cmd|'/C calc'!A0",
    "\u0301" * 40,
    "NaN",
    "²",
    "-1",
)
COMMANDS = (
    ["plan"],
    ["run"],
    ["runs"],
    ["status"],
    ["verify"],
    ["maintain"],
    ["pause"],
    ["resume"],
    *(["search", "-k", "40", "--mode", "hybrid", "--", text] for text in HOSTILE),
    ["search", "w1", "-k", "80", "--context", "2"],
    ["search", "nothing", "--mode", "text", "--per-document"],
    ["search", "", "--plus", "[/b]", "--minus", "w3", "--diversity", "0.5"],
    *(["search", "w1", "--where", f"doc_id = '{text}"] for text in HOSTILE[::3]),
    ["evaluate", "--self"],
    ["evaluate", "--self", "--against", "text"],
    ["evaluate", "--queries", "q.jsonl", "--qrels", "one.jsonl", "--against", "text"],
    ["evaluate", "--queries", "q.jsonl", "--qrels", "none.jsonl", "--per-query", "each.csv"],
    ["evaluate", "--queries", "[/b].jsonl", "--qrels", "[/b].jsonl"],
    ["cluster", "-k", "18"],
    ["cluster", "-k", "4", "--against", "label"],
    ["duplicates", "--similarity", "0.5"],
    ["drift", "--since", "1"],
    ["drift", "--report", "changes.html"],
    ["compress"],
    ["compress", "--queries", "q.jsonl", "--qrels", "none.jsonl", "--picture", "curve.png"],
    ["compress", "--queries", "q.jsonl", "--qrels", "one.jsonl"],
    ["between", "[/b]", "\x1b[31m"],
    ["analogy", "analogies.jsonl"],
    ["map", "--picture", "map.png", "--html", "page"],
    *(["rollback", text] for text in (*HOSTILE, "9" * 40, "-5")),
    *(["drift", "--since", text] for text in ("²", "9" * 40)),
    *(["migrate", "--model", text] for text in ("[/b]", "\x1b[31m")),
    *(["compress", "--write", f"pca-{text}-int8"] for text in ("²", "[/b]")),
)


@pytest.fixture(scope="module")
def hostile(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    labeller = '[cluster]\nlabeller = "names_of_topics:name"\n'
    desk = desk_for(tmp_path_factory.mktemp("hostile"), metadata=["score", "label", "value"], more=labeller)
    (desk.folder / "names_of_topics.py").write_text(
        f"HOSTILE = {HOSTILE!r}\n\n\ndef name(topics):\n    return [HOSTILE[i % len(HOSTILE)] for i in range(len(topics))]\n"
    )
    rows = [
        {
            "id": f"{text}{i}",
            "text": f"{text} {words(*range(i, i + 9))}",
            "score": text,
            "label": text,
            "value": [math.nan, math.inf, i][i % 3],
        }
        for i, text in ((i, HOSTILE[i % len(HOSTILE)]) for i in range(5, 80))
    ]
    desk.write("[b] \x1b[31m\u202e$x.jsonl", rows[:50])
    desk.embed()
    desk.write("b\n.jsonl", [*rows[50:], {"id": "[/b]", "text": None}])
    desk.write("damaged [/b]\x1b[2J.jsonl", [])
    desk.embed()
    maintenance.maintain(desk.config)
    files = {
        "q.jsonl": [{"id": "[/b]", "text": "\x1b[31m w1"}],
        "one.jsonl": [{"query_id": "[/b]", "doc_id": rows[0]["id"], "score": 1}],
        "none.jsonl": [{"query_id": "[/b]", "doc_id": "nowhere", "score": 1}],
        "analogies.jsonl": [{"a": "[/b]", "b": "\x1b", "c": "w1", "expected": "w2", "section": "[/b]\x1b[31m"}],
    }
    for name, lines in files.items():
        (desk.folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return desk


def acting(text: str) -> list[str]:
    return [
        each
        for each in text
        if (unicodedata.category(each) in {"Cc", "Zl", "Zp", "Cs"} and each != "\n") or each in "\u202e\u2066\u200b\ufeff"
    ]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda given: " ".join(given[:2]).encode("unicode_escape").decode())
def test_no_command_fails_of_what_documents_hold_or_lets_it_act(hostile: Desk, latent: Latent, arguments: list[str]) -> None:
    shown = latent(hostile.folder, *arguments)
    assert "Traceback" not in shown.err
    assert acting(shown.out + shown.err) == []
    assert shown.code in {0, 1, 2}
    answer = latent(hostile.folder, arguments[0], "--json", *arguments[1:])
    assert acting(answer.out + answer.err) == []
    assert (answer.code, isinstance(orjson.loads(answer.out), dict)) == (shown.code, True)


def test_init_shows_a_hostile_path_as_text(tmp_path: Path, latent: Latent) -> None:
    name = "[b]\x1b[31m\u202e\n"
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.md").write_text("text")
    done = latent(tmp_path, "init", str(tmp_path / name).replace("[", "[[]"), "--config", "new.toml")
    assert acting(done.out + done.err) == []
