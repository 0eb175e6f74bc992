"""Texts → unit vectors, in batches of equal length: the only room with torch and sentence-transformers in it.

Texts are sorted by tokens over everything that is given and cut into batches of at most `BATCH_TOKENS` padded tokens. Measured on
CPU against `SentenceTransformer.encode` with its defaults: 1.3–2.0 times the speed at equal vectors (cosine 1.00000), because next to nothing is padding.
Importing the libraries takes 5–20 s and 600 MB: only those who encode import them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ModelError
from pipeline.schema import LocalModel

Vectors = npt.NDArray[np.float32]
BATCH_TOKENS = {"cpu": 2048, "mps": 16_384, "cuda": 65_536}  # CPU: 1–4k is best, 8k slower; measured on AVX-512


def actual_precision(precision: str) -> str:
    """What "auto" stands for: float32 everywhere, so that a table may be filled on CPU and GPU alike."""
    return "float32" if precision == "auto" else precision


def best_device(device: str) -> str:
    """What "auto" stands for on this machine."""
    if device != "auto":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def gpu_count() -> int:
    """CUDA devices on this machine."""
    import torch

    return int(torch.cuda.device_count())


class Encoder:
    """A loaded model. Load it once and keep it: that is what workers are for."""

    def __init__(self, model: LocalModel, *, device: str = "auto", precision: str = "auto", threads: int | None = None) -> None:
        """Raises ModelError where the weights do not load or the device is not there."""
        _quiet()
        import torch
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer

        if threads:
            torch.set_num_threads(threads)
        self.device = best_device(device)
        self.dim = model.dim
        dtype = getattr(torch, actual_precision(precision))
        try:
            self._model = SentenceTransformer(
                model.folder,
                device=self.device,
                trust_remote_code=model.trust_remote_code,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": dtype},
            )
        except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
            raise ModelError(f"model {model.name}: does not load on {self.device}: {str(error).strip().splitlines()[0]}") from error
        if model.max_tokens:
            self._model.max_seq_length = model.max_tokens
        self._model.eval()

    def encode(self, texts: Sequence[str], tokens: Sequence[int]) -> Vectors:
        """Vectors (n, dim) of unit length, in the order of the texts; `tokens` are their lengths.

        A text that the model cannot give a finite direction (NaN, zero) has a row of NaN.
        """
        vectors = np.empty((len(texts), self.dim), np.float32)
        for batch in batches(tokens, BATCH_TOKENS[self.device.split(":")[0]]):
            vectors[batch] = self._forward([texts[i] for i in batch])
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            vectors /= norms
        vectors[~np.isfinite(vectors).all(axis=1)] = np.nan
        return vectors

    def _forward(self, texts: list[str]) -> Vectors:
        import torch

        with torch.inference_mode():
            features: dict[str, Any] = self._model.preprocess(texts)
            on_device = {k: v.to(self.device) if hasattr(v, "to") else v for k, v in features.items()}
            vectors: Vectors = self._model(on_device)["sentence_embedding"].float().cpu().numpy()
        return vectors


def batches(tokens: Sequence[int], budget: int) -> Iterator[npt.NDArray[np.intp]]:
    """Indices of texts that go together: alike in length, at most `budget` tokens once padded to the longest, longest first.

    Longest first, so that a batch that does not fit in memory is met at once and not after an hour.
    """
    order = np.argsort(-np.asarray(tokens), kind="stable")
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, tokens[order[start]]))
        yield order[start : start + size]
        start += size


def _quiet() -> None:
    """Progress bars and advice of the libraries are not ours to print; tokenizer threads would compete with torch's."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with contextlib.suppress(ImportError):
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
