"""Texts → unit vectors, in batches of equal length: the only room with torch and sentence-transformers in it.

Texts are sorted by tokens over everything that is given and cut into batches of at most `BATCH_TOKENS` padded tokens. Measured on
CPU against `SentenceTransformer.encode` with its defaults: 1.3–2.0 times the speed at equal vectors (cosine 1.00000), because next to nothing is padding.
Importing the libraries takes 5–20 s and 600 MB: only those who encode import them.

A batch that fails, for want of memory or of anything else, is halved until the guilty text stands by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import EngineError, Failure, ModelError, one_line
from pipeline.schema import LocalModel

log = logging.getLogger("pipeline")
Vectors = npt.NDArray[np.float32]
OUT_OF_MEMORY = "encoding failed: out of memory"
PROBE = "a"  # a text that every model has a vector for
MEMORY_WORDS = re.compile("out of memory|allocate memory|enough memory|ALLOC_FAILED", re.IGNORECASE)  # CUDA, Linux, Windows, cuBLAS
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


@dataclass(frozen=True)
class Encoded:
    """What came of some texts."""

    vectors: Vectors  # (n, dim) of unit length; a row of NaN for a text that has none
    failed: dict[int, Failure]  # texts that the model fails on, each by itself


class Encoder:
    """A loaded model. Load it once and keep it: that is what workers are for."""

    def __init__(self, model: LocalModel, *, device: str = "auto", precision: str = "auto", threads: int | None = None) -> None:
        """Raises ModelError where the weights do not load, are not what the configuration says, or the device is not there."""
        _quiet()
        import torch
        from sentence_transformers import SentenceTransformer

        if threads:
            torch.set_num_threads(threads)
        self.device = best_device(device)
        self.dim = model.dim
        self._budget = BATCH_TOKENS[self.device.split(":")[0]]  # halved where a batch does not fit in memory
        dtype = getattr(torch, actual_precision(precision))
        try:
            self._model = SentenceTransformer(
                model.folder,
                device=self.device,
                trust_remote_code=model.trust_remote_code,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": dtype},
            )
            if model.max_tokens:
                self._model.max_seq_length = model.max_tokens
            self._model.eval()
            for tensor in itertools.chain(self._model.parameters(), self._model.buffers()):
                tensor.data = tensor.data.clone()  # loaded, it is the file: to write over that would change vectors, or kill
            probe = self._forward([PROBE])
        except Exception as error:  # each library, and the code of a trusted model, has errors of its own
            raise ModelError(
                f"model {model.name}: does not load on {self.device}: {one_line(str(error) or repr(error))}"
            ) from error
        if probe.shape[1] != self.dim:
            raise ModelError(
                f"model {model.name}: gives vectors of length {probe.shape[1]}, its configuration says {self.dim}: download it again"
            )
        if not np.isfinite(probe).all():
            raise ModelError(
                f"model {model.name}: gives no finite vector for {PROBE!r} in {actual_precision(precision)}: "
                "its weights are damaged, or [model] precision is too short for them"
            )

    def encode(self, texts: Sequence[str], tokens: Sequence[int]) -> Vectors:
        """Vectors (n, dim) of unit length, in the order of the texts; `tokens` are their lengths.

        A text that the model fails on, or cannot give a finite direction (NaN, zero), has a row of NaN.
        """
        return self.attempt(texts, tokens).vectors

    def attempt(self, texts: Sequence[str], tokens: Sequence[int]) -> Encoded:
        """As `encode`, with what went wrong. Raises EngineError where the device fails on anything from now on."""
        vectors = np.full((len(texts), self.dim), np.nan, np.float32)
        failed: dict[int, Failure] = {}
        waiting = deque(batches(tokens, self._budget))
        while waiting:
            batch = waiting.popleft()
            made = self._try([texts[i] for i in batch])
            if not isinstance(made, Failure):
                vectors[batch] = made
            elif len(batch) == 1:
                failed[int(batch[0])] = self._blamed(made)
            elif made.reason.startswith(OUT_OF_MEMORY):
                self._budget = len(batch) * tokens[batch[0]] // 2
                most = tokens[batch[0]]
                log.warning(
                    "out of memory on %s with %d passages of %d tokens: half as much at once from now on",
                    self.device,
                    len(batch),
                    most,
                )
                rest = np.concatenate([batch, *waiting])
                waiting = deque(rest[part] for part in batches([tokens[i] for i in rest], self._budget))
            else:
                waiting.extendleft(reversed(np.array_split(batch, 2)))
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            vectors /= norms
        vectors[~np.isfinite(vectors).all(axis=1)] = np.nan
        return Encoded(vectors, failed)

    def _blamed(self, failure: Failure) -> Failure:
        """The failure, if it is the text's. Raises EngineError where the device fails on any text from now on."""
        if isinstance(dead := self._try([PROBE]), Failure):
            raise EngineError(f"{self.device} fails on whatever it is given: {failure.reason}; then {dead.reason}")
        return failure

    def _try(self, texts: list[str]) -> Vectors | Failure:
        """Their vectors, or why there are none. What the failed pass held is free again when this returns."""
        try:
            return self._forward(texts)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 a panic of the tokenizer is no Exception
            memory = isinstance(error, MemoryError) or MEMORY_WORDS.search(str(error))
            return Failure.of(OUT_OF_MEMORY if memory else "encoding failed", error)

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
