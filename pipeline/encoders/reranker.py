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

from latent.encoders.encoder import best_device, quiet
from latent.encoders.inputs import pair_inputs
from latent.errors import ModelError, one_line
from latent.types import ResolvedModel

PAIRS, PAIRS_ON_CPU = 32, 4  # that go through the model together; on a CPU few of like length, as little of them is padding
LONGEST = 512  # tokens of a pair, where the model does not say

Scores = npt.NDArray[np.float64]


class Reranker:
    """A loaded cross-encoder. Safe to share between threads, which wait for each other."""

    def __init__(self, model: ResolvedModel, *, device: str = "auto") -> None:
        """`model` holds safetensors for sentence-transformers, or an ONNX file with its tokenizer. Raises ModelError where it does not load."""
        quiet()
        self._lock = threading.Lock()
        try:
            self._scored = _with_onnx(model) if _onnx(model) else _with_sentence_transformers(model, device)
            probe = self.scores("a", ["a", "b c"])
        except ImportError as error:
            raise ModelError(f"model {model.name}: ONNX weights need ONNX Runtime: pip install 'latent[onnx]'") from error
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


def _onnx(model: ResolvedModel) -> Path | None:
    """The ONNX file of a model without safetensors."""
    folder = Path(model.folder)
    return None if any(folder.glob("*.safetensors")) else min(folder.rglob("*.onnx"), default=None)


def _with_sentence_transformers(model: ResolvedModel, device: str) -> Any:
    from sentence_transformers import CrossEncoder

    chosen = best_device(device)
    encoder = CrossEncoder(
        model.folder,
        device=chosen,
        local_files_only=True,
        trust_remote_code=False,
        max_length=model.max_tokens,
        model_kwargs={"use_safetensors": True},
    )
    together = PAIRS_ON_CPU if chosen == "cpu" else PAIRS
    as_input = pair_inputs(encoder)

    def scored(pairs: list[tuple[str, str]]) -> Any:
        return encoder.predict([as_input(*pair) for pair in pairs], batch_size=together, show_progress_bar=False) if pairs else []

    return scored


def _with_onnx(model: ResolvedModel) -> Any:
    """Logits by ONNX Runtime."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model.folder) / "tokenizer.json"))
    tokenizer.enable_truncation(min(model.max_tokens or LONGEST, LONGEST), strategy="only_second")
    tokenizer.enable_padding()
    session = onnxruntime.InferenceSession(_onnx(model), providers=["CPUExecutionProvider"])
    features = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    wanted = {given.name: features[given.name] for given in session.get_inputs()}

    def scored(pairs: list[tuple[str, str]]) -> Scores:
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][1]))
        logits = np.empty(len(pairs))
        for start in range(0, len(pairs), PAIRS_ON_CPU):
            batch = order[start : start + PAIRS_ON_CPU]
            encoded = tokenizer.encode_batch([pairs[i] for i in batch])
            given = {name: np.array([getattr(e, field) for e in encoded], np.int64) for name, field in wanted.items()}
            logits[batch] = session.run(None, given)[0].reshape(len(batch), -1)[:, 0]
        return logits

    return scored
