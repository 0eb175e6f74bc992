"""What tests share: a corpus on disk, a small real model, workers in this process, and the comparison of two tables."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pytest

from latent import interruption
from latent.cli import main
from latent.config import Config, load
from latent.ingest import resolve, run
from latent.types import Report, Shard
from latent.workers import CompletedShard, FailedDocument, WorkerFactory, WorkerPoolSpec

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real test collections, where they are."""
    if not SHARED.is_dir():
        pytest.skip(f"no test collections at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"))


def save_small_model(folder: Path, dim: int = 16, seed: int = 1) -> Path:
    """Save a sentence-transformers model that loads in milliseconds: a random vector of `dim` numbers a word.

    Writes what `SentenceTransformer.save` writes, without the 10 to 30 seconds of importing torch.
    """
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = ["[UNK]", *(f"w{i}" for i in range(500)), *".,:;!?"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(seed).standard_normal((len(words), dim)).astype(np.float32)
    weights[words.index("w13")] = np.nan  # a word that no vector comes of
    modules = {
        "": "sentence_transformer.modules.static_embedding.StaticEmbedding",
        "1_Normalize": "base.modules.normalize.Normalize",
    }
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
        for i, (path, kind) in enumerate(modules.items())
    ]
    (folder / "1_Normalize").mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embedding.weight": weights}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Normalize" / "config.json").write_text("{}")
    (folder / "config_sentence_transformers.json").write_text(
        '{"prompts": {"query": "", "document": ""}, "similarity_fn_name": "cosine"}'
    )
    return folder


class HereAndNow:
    """Workers in this process, one shard after another: the real `Worker`, without Ray."""

    workers = 1
    stopped = False

    def __init__(self, pool_spec: WorkerPoolSpec, worker_factory: WorkerFactory, shards: int) -> None:
        self._vectors: dict[str, np.ndarray] = {}
        self._make = worker_factory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def work(self, shards: Iterable[Shard]) -> Iterator[CompletedShard | FailedDocument]:
        worker = self._make(self)
        for shard in shards:
            if self.stopped:
                return
            yield CompletedShard(shard, worker.embed(shard))

    def stop(self) -> None:
        self.stopped = True

    def mark_committed(self, shards: Sequence[str]) -> None:
        pass

    # Claims: this is the only worker, so what is claimed and published is at hand at once.
    def claim(self, shard: str, hashes: Sequence[str]) -> tuple[list[str], list[str]]:
        return [h for h in hashes if h not in self._vectors], []

    def publish(self, vectors: Mapping[str, np.ndarray]) -> None:
        self._vectors |= vectors

    def wait_for(self, hashes: Sequence[str]) -> dict[str, np.ndarray]:
        return {h: self._vectors[h] for h in hashes}


@dataclass
class Desk:
    """A source, a config and a table in a folder of their own."""

    folder: Path
    config_path: Path

    @property
    def config(self) -> Config:
        return load(self.config_path)

    @property
    def source(self) -> Path:
        return self.folder / "src"

    def write(self, name: str, documents: Iterable[Mapping[str, object]]) -> Path:
        """A JSONL file of the source."""
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(d) + "\n" for d in documents))
        return path

    def embed(self, **options: object) -> Report:
        return run.embed(self.config, **({"engine": HereAndNow} | options))

    def table(self) -> pa.Table:
        return resolve.store_of(self.config).opened().to_table()

    def side(self, name: str) -> list[dict[str, object]]:
        from latent.store import load_state, read_runs

        place = resolve.store_of(self.config)
        rows = read_runs(place) if name == "runs" else getattr(load_state(place), name)
        return list(rows.to_pylist())

    def rows(self) -> dict[tuple[str, int], tuple[object, ...]]:
        """(doc_id, chunk_index) → text, metadata, source_file. Fails where a row stands twice."""
        table = self.table()
        keys = list(zip(table["doc_id"].to_pylist(), table["chunk_index"].to_pylist(), strict=True))
        assert len(set(keys)) == len(keys), "a row stands twice"
        names = ["text", *self.config.source.metadata, "source_file"]
        return dict(zip(keys, zip(*(table[n].to_pylist() for n in names), strict=True), strict=True))

    def vectors(self) -> dict[tuple[str, int], np.ndarray]:
        table = self.table()
        keys = zip(table["doc_id"].to_pylist(), table["chunk_index"].to_pylist(), strict=True)
        return dict(zip(keys, np.array(table["vector"].to_pylist(), np.float32), strict=True))


@pytest.fixture(scope="session")
def desk_for(small_model: Path) -> Callable[..., Desk]:
    """Makes desks: `desk_for(folder, source="src/*.jsonl", metadata=["n"], tokens=16)`."""

    def make(
        folder: Path,
        uri: str = "src/**",
        metadata: Sequence[str] = (),
        tokens: int | str = 16,
        overlap: int = 0,
        model: str | None = None,
        more: str = "",
    ) -> Desk:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "src").mkdir(exist_ok=True)
        path = folder / "config.toml"
        path.write_text(
            f"[source]\nuri = {json.dumps(uri)}\nmetadata = {json.dumps(list(metadata))}\n"
            f"[chunk]\ntokens = {json.dumps(tokens)}\noverlap = {overlap}\n"
            f"[model]\nname = {json.dumps(model or str(small_model))}\n{more}"
        )
        return Desk(folder, path)

    return make


@pytest.fixture
def desk(desk_for: Callable[..., Desk], tmp_path: Path) -> Desk:
    return desk_for(tmp_path / "desk")


@dataclass(frozen=True)
class Said:
    """What a command told, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict:
        """One JSON object, and nothing else."""
        assert self.code == 0, self.err
        return json.loads(self.out)


Latent = Callable[..., Said]


@pytest.fixture
def latent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Latent]:
    """A command line in this process: `latent(desk.folder, "search", "x")`. What a process of its own does otherwise is in test_cli."""
    log = logging.getLogger("latent")
    logs = log.handlers, log.propagate, log.level

    def call(folder: Path, *arguments: object) -> Said:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("LATENT_TRACEBACK", "1")  # a fault of the program itself fails the test
        monkeypatch.setattr(sys, "argv", ["latent", *map(str, arguments)])
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            interruption.uninstall()
        return Said(int(ended.value.code or 0), *capsys.readouterr())

    yield call
    log.handlers, log.propagate = logs[:2]
    log.setLevel(logs[2])


def words(*numbers: int) -> str:
    """A text of words that the small model knows."""
    return " ".join(f"w{n}" for n in numbers)
