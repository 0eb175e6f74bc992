"""A cross-encoder: reads query and passage together, which tells better than two vectors whether one answers the other, and costs a pass for each pair.

(Nogueira & Cho 2019, https://arxiv.org/abs/1901.04085)
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encode.encoder import best_device, quiet
from pipeline.errors import ModelError, one_line
from pipeline.schema import LocalModel

PAIRS = 32  # that go through the model together
LONGEST = 512  # tokens of a pair, where the model does not say

Scores = npt.NDArray[np.float64]


class Reranker:
    """A loaded cross-encoder. Safe to share between threads, which wait for each other."""

    def __init__(self, model: LocalModel, *, device: str = "auto") -> None:
        """`model` holds safetensors for sentence-transformers, or one file of ONNX or OpenVINO with its tokenizer. Raises ModelError where it does not load."""
        quiet()
        self._lock = threading.Lock()
        try:
            self._scored = _with_openvino(model) if _graph(model) else _with_sentence_transformers(model, device)
            probe = self.scores("a", ["a", "b c"])
        except ImportError as error:
            raise ModelError(
                f"model {model.name}: weights of ONNX or OpenVINO need the extra int8: pip install 'latent[int8]'"
            ) from error
        except Exception as error:  # each library has errors of its own
            raise ModelError(
                f"model {model.name}: does not load as a cross-encoder: {one_line(str(error) or repr(error))}"
            ) from error
        if not np.isfinite(probe).all():
            raise ModelError(f"model {model.name}: gives no finite score: its weights are damaged")

    def scores(self, query: str, passages: Sequence[str]) -> Scores:
        """How well each passage answers the query (n,): as the model scores, higher is better."""
        with self._lock:
            scores: Scores = np.asarray(self._scored([(query, passage) for passage in passages]), np.float64).reshape(-1)
        if len(scores) != len(passages):
            raise ValueError(f"{len(scores) / max(len(passages), 1):.0f} scores a pair, wanted one")
        return scores


def _graph(model: LocalModel) -> Path | None:
    """What OpenVINO runs of a model without safetensors."""
    folder = Path(model.folder)
    return None if any(folder.glob("*.safetensors")) else min([*folder.rglob("*.onnx"), *folder.rglob("*.xml")], default=None)


def _with_sentence_transformers(model: LocalModel, device: str) -> Any:
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(
        model.folder,
        device=best_device(device),
        local_files_only=True,
        trust_remote_code=False,
        max_length=model.max_tokens,
        model_kwargs={"use_safetensors": True},
    )
    return lambda pairs: encoder.predict(pairs, batch_size=PAIRS, show_progress_bar=False) if pairs else []


def _with_openvino(model: LocalModel) -> Any:
    """Logits by OpenVINO, which reads ONNX too."""
    import openvino
    from tokenizers import Tokenizer

    folder = Path(model.folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(min(model.max_tokens or LONGEST, LONGEST), strategy="only_second")
    tokenizer.enable_padding()
    compiled = openvino.Core().compile_model(_graph(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [name for given in compiled.inputs for name in given.get_names()]

    def scored(pairs: list[tuple[str, str]]) -> Scores:
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][1]))  # alike in length: little padding
        logits = np.empty(len(pairs))
        for start in range(0, len(pairs), PAIRS):
            batch = order[start : start + PAIRS]
            encoded = tokenizer.encode_batch([pairs[i] for i in batch])
            features = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
            given = {name: np.array([getattr(e, features[name]) for e in encoded], np.int64) for name in names}
            logits[batch] = compiled(given)[0].reshape(len(batch), -1)[:, 0]
        return logits

    return scored
