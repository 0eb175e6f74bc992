"""The encoder: texts sorted by tokens, cut into batches, packed where the model takes that and padded where not."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import string
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from latent.encoders.batching import ALIKE, TokenizedTexts, batches
from latent.encoders.inputs import PROBE, TextFeatures
from latent.encoders.quantization_error import QuantizationError, known_loss
from latent.errors import EngineError, Failure, ModelError, one_line
from latent.types import ResolvedModel

log = logging.getLogger("latent")
Vectors = npt.NDArray[np.float32]
OUT_OF_MEMORY = "encoding failed: out of memory"
# No two neighbours alike, and longer than the windows of models that attend within one.
LONG_PROBE = " ".join(string.ascii_lowercase[i * i % 26] for i in range(300))
SAME, SAME_SHORT = 1e-5, 2e-2  # by how much numbers of equal vectors differ, in float32 and in shorter arithmetic
TOKENISED_AT_ONCE = 1024  # texts; an encoding takes some 100 bytes a token
NO_TOKEN = np.empty(0, np.int32)
MEMORY_WORDS = re.compile("out of memory|allocate memory|enough memory|ALLOC_FAILED", re.IGNORECASE)  # CUDA, Linux, Windows, cuBLAS
BATCH_TOKENS = {"cpu": 2048, "int8": 1024, "mps": 16_384, "cuda": 65_536}  # CPU: 1–2k is best, 4k slower: tests/bench/NOTES.md


def actual_precision(precision: str) -> str:
    """What "auto" stands for: float32 everywhere, so that a table may be filled on CPU and GPU alike."""
    return "float32" if precision == "auto" else precision


def best_device(device: str, precision: str = "auto") -> str:
    """What "auto" stands for on this machine."""
    if device != "auto":
        return device
    if precision == "int8":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def loss_of(model: ResolvedModel) -> QuantizationError:
    """What precision "int8" costs. Converts the model where this machine has not yet, which takes some seconds."""
    loss = known_loss(model) or Encoder(model, precision="int8").loss
    assert loss is not None
    return loss


def gpu_count() -> int:
    """CUDA devices on this machine."""
    import torch

    return int(torch.cuda.device_count())


@dataclass(frozen=True)
class EncodeResult:
    """What came of some texts."""

    vectors: Vectors  # (n, dim) of unit length; a row of NaN for a text that has none
    failed: dict[int, Failure]  # texts that the model fails on, each by itself


class Encoder:
    """A loaded model. Load it once and keep it: that is what workers are for."""

    def __init__(self, model: ResolvedModel, *, device: str = "auto", precision: str = "auto", threads: int | None = None) -> None:
        """Raises ModelError where the weights do not load, are not what the configuration says, or the device is not there."""
        quiet()
        import torch
        from sentence_transformers import SentenceTransformer

        if threads:
            torch.set_num_threads(threads)
        self.device = best_device(device, precision)
        self.dim = model.dim
        int8 = precision == "int8"
        self._budget = BATCH_TOKENS["int8" if int8 else self.device.split(":")[0]]  # halved where a batch does not fit in memory
        dtype = torch.float32 if int8 else getattr(torch, actual_precision(precision))
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
            self._tokenizer = _tokenizer(self._model, model.max_tokens)
            self._text_features = TextFeatures(self._model)
            self._pools_prompt = all(getattr(module, "include_prompt", True) for module in self._model.modules())
            probe = self._by_text([PROBE])
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
        self._features = self._faithful(SAME if dtype == torch.float32 else SAME_SHORT, packed=self.device == "cpu" and not int8)
        self.loss = self._quantise(model, threads) if int8 else None  # of 8-bit vectors, against float32

    @property
    def hardware(self) -> str:
        """What calculates: the GPU's name, or the processor's instructions."""
        import torch

        if self.device.startswith("cuda"):
            return str(torch.cuda.get_device_name(self.device))
        return f"{self.device} {torch.backends.cpu.get_cpu_capability()}"

    def prepare(self, texts: Sequence[str], prompt: str = "") -> TokenizedTexts:
        """Tokenise with the prompt before each text: beside another thread that encodes, since the tokenizer needs no lock of Python's."""
        ids, failed = list[npt.NDArray[np.int32]](), dict[int, Failure]()
        for at in range(0, len(texts), TOKENISED_AT_ONCE):
            for i, each in enumerate(self._tokenise([prompt + text for text in texts[at : at + TOKENISED_AT_ONCE]]), start=at):
                failed |= {i: each} if isinstance(each, Failure) else {}
                ids.append(NO_TOKEN if isinstance(each, Failure) else each)
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        return TokenizedTexts(texts, np.concatenate([NO_TOKEN, *ids]), offsets, failed, prompt)

    def encode(self, texts: Sequence[str], prompt: str = "") -> Vectors:
        """Vectors (n, dim) of unit length, in the order of the texts, the prompt put before each.

        A text that the model fails on, or cannot give a finite direction (NaN, zero), has a row of NaN.
        """
        return self.attempt(self.prepare(texts, prompt)).vectors

    def attempt(self, given: TokenizedTexts) -> EncodeResult:
        """As `encode`, with what went wrong. Raises EngineError where the device fails on anything from now on.

        Nothing is fetched from a GPU before the end, so that it has its next batch while this one is still going on.
        """
        tokens = given.tokens
        done: list[tuple[npt.NDArray[np.intp], Any]] = []
        failed = dict(given.failed)
        whole = np.array([i for i in range(len(given.texts)) if i not in given.failed], np.intp)
        waiting = deque(whole[part] for part in batches(tokens[whole], self._budget, self._alike))
        while waiting:
            batch = waiting.popleft()
            made = self._try(given, batch)
            if not isinstance(made, Failure):
                done.append((batch, made))
            elif len(batch) == 1:
                failed[int(batch[0])] = self._blamed(made)
            elif made.reason.startswith(OUT_OF_MEMORY):
                most = int(tokens[batch[0]])
                self._budget = len(batch) * most // 2
                log.warning(
                    "out of memory on %s with %d passages of %d tokens: half as much at once from now on",
                    self.device,
                    len(batch),
                    most,
                )
                rest = np.concatenate([batch, *waiting])
                waiting = deque(rest[part] for part in batches(tokens[rest], self._budget, self._alike))
            else:
                waiting.extendleft(reversed(np.array_split(batch, 2)))
        vectors = np.full((len(given.texts), self.dim), np.nan, np.float32)
        for batch, made in done:
            vectors[batch] = _fetched(made)
        return EncodeResult(_unit(vectors), failed)

    @property
    def _alike(self) -> float:
        """See `batches`."""
        return ALIKE if self._features is None or self._features.pads else 0.0

    def _blamed(self, failure: Failure) -> Failure:
        """The failure, if it is the text's. Raises EngineError where the device fails on any text from now on."""
        if isinstance(dead := self._try(self.prepare([PROBE]), np.zeros(1, np.intp)), Failure):
            raise EngineError(f"{self.device} fails on whatever it is given: {failure.reason}; then {dead.reason}")
        return failure

    def _tokenise(self, texts: list[str]) -> list[npt.NDArray[np.int32] | Failure]:
        try:
            return [np.array(each.ids, np.int32) for each in self._tokenizer.encode_batch_fast(texts)]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 a panic of the tokenizer is no Exception
            if len(texts) == 1:
                return [Failure.of("tokenizing failed", error)]
        return [each for text in texts for each in self._tokenise([text])]

    def _try(self, given: TokenizedTexts, batch: npt.NDArray[np.intp]) -> Any | Failure:
        """The vectors of a batch, still on the device, or why there are none. What the failed pass held is free again when this returns."""
        try:
            if self._features is None:
                features = self._text_features([given.texts[i] for i in batch], given.prompt)
            else:
                features = self._features(given.of(batch))
            return self._forward(features | self._prompt_features(given.prompt))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 memory, the device, the code of a trusted model
            memory = isinstance(error, MemoryError) or MEMORY_WORDS.search(str(error))
            return Failure.of(OUT_OF_MEMORY if memory else "encoding failed", error)

    def _prompt_features(self, prompt: str) -> dict[str, int]:
        """The length of the prompt in tokens, for a model that leaves it out of its mean."""
        if not prompt or self._pools_prompt:
            return {}
        told = self._tokenizer.encode(prompt)
        return {"prompt_length": len(told.ids) - int(sum(told.special_tokens_mask[-1:]))}

    def _by_text(self, texts: list[str]) -> Vectors:
        """As sentence-transformers does it: any model, any module."""
        return _fetched(self._forward(self._text_features(texts)))

    def _faithful(self, tolerance: float, *, packed: bool) -> Any | None:
        """What makes features of ids for this model; None where none gives the vectors that sentence-transformers gives.

        Tried, since models differ in what they build on positions and masks. The long text is for those that attend within a window.
        """
        from latent.encoders.packing import Packer, Padder, lay_out

        texts = [LONG_PROBE, f"  Üñî {PROBE.upper()}? ", PROBE, PROBE]
        kinds: list[Any] = [Packer, Padder] if packed else [Padder]
        for kind in kinds:
            features = None
            try:  # models, and their tokenizers, may have anything against it
                expected = _unit(np.concatenate([self._by_text([text]) for text in texts]))
                features = kind(self._model)
                found = _unit(_fetched(self._forward(features(self.prepare(texts).of(range(len(texts)))))))
                if np.allclose(found, expected, atol=tolerance):
                    if kind is Packer:
                        lay_out(self._model, self._budget)
                    return features
                reason = "other vectors"
            except Exception as error:  # noqa: BLE001
                reason = one_line(str(error))
            log.info("texts do not go through a %s: %s", kind.__name__, reason)
            if features is not None:
                features.undo()
        return None

    def _quantise(self, model: ResolvedModel, threads: int | None) -> QuantizationError:
        """From now on the transformer calculates in 8 bits. Raises ModelError where it cannot."""
        from latent.encoders.int8 import quantise

        if self._features is None:
            raise ModelError(f"model {model.name}: takes no 8-bit arithmetic: set [model] precision to auto")
        example = self._features(self.prepare([LONG_PROBE, PROBE]).of(range(2)))
        return quantise(self._model, model, example, threads, self.encode)

    def _forward(self, features: dict[str, Any]) -> Any:
        import torch

        with torch.inference_mode():
            return self._model({name: self._sent(value) for name, value in features.items()})["sentence_embedding"]

    def _sent(self, value: Any) -> Any:
        """On the device. From pinned memory a copy goes on while the device calculates."""
        if not hasattr(value, "to"):
            return value
        return value.pin_memory().to(self.device, non_blocking=True) if self.device.startswith("cuda") else value.to(self.device)


def _fetched(vectors: Any) -> Vectors:
    """From the device, in float32."""
    found: Vectors = vectors.float().cpu().numpy()
    return found


def _unit(vectors: Vectors) -> Vectors:
    """Of unit length; NaN where that cannot be."""
    with np.errstate(invalid="ignore", divide="ignore"):
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[~np.isfinite(vectors).all(axis=1)] = np.nan
    return vectors


def _tokenizer(model: Any, max_tokens: int | None) -> Tokenizer:
    """The model's own, a copy that cuts off where the model stops reading and does not pad."""
    own = getattr(model.tokenizer, "backend_tokenizer", model.tokenizer)
    tokenizer = Tokenizer.from_str(own.to_str())
    tokenizer.no_padding()
    if max_tokens:
        tokenizer.enable_truncation(max_tokens)
    else:
        tokenizer.no_truncation()
    return tokenizer


def quiet() -> None:
    """Progress bars and advice of the libraries are not ours to print; tokenizer threads would compete with torch's."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with contextlib.suppress(ImportError):
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
