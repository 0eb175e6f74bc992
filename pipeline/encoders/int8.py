"""Eight-bit arithmetic on a CPU, through OpenVINO: 8-bit weights, and activations quantised as they come, by groups of 128.

(https://docs.openvino.ai/2026/openvino-workflow/model-optimization-guide/weight-compression.html) A model is converted once on a machine, by whoever needs it first while
others wait, and kept beside the hub's cache. What that costs the vectors is measured then, and kept with it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from sentence_transformers import SentenceTransformer

from latent.encoders.quantization_error import GROUP, QuantizationError, kept_in, known_loss, passages
from latent.errors import ModelError, one_line
from latent.types import ResolvedModel

LEAST_COSINE = 0.98  # on average: a conversion that loses more has gone wrong
WEIGHTS = "model.xml"


def quantise(
    model: SentenceTransformer,
    source: ResolvedModel,
    example: dict[str, Any],
    threads: int | None,
    encode: Callable[[list[str]], npt.NDArray[np.float32]],
) -> QuantizationError:
    """The model's transformer calculates in 8 bits from now on. `example` are features of some texts; `encode` encodes with the model as it is.

    Raises ModelError where OpenVINO is not installed, cannot convert the model, or gives other vectors.
    """
    folder = kept_in(source)
    with FileLock(folder / "lock"):
        loss, texts = known_loss(source), passages()
        if loss is None:
            exact = encode(texts)
            _convert(model, source, example, folder / WEIGHTS)
        try:
            model[0] = _EightBit(folder / WEIGHTS, threads, model[0].module_output_name)
        except RuntimeError as error:
            raise ModelError(f"model {source.name}: its 8-bit weights do not load: remove {folder}, they are made again") from error
        if loss is None:
            loss = QuantizationError.between(encode(texts), exact)
            loss.keep(source)
    if not loss.cosine >= LEAST_COSINE:
        raise ModelError(f"model {source.name}: loses too much in 8 bits: {loss}: set [model] precision to auto")
    return loss


def _convert(model: SentenceTransformer, source: ResolvedModel, example: dict[str, Any], path: Path) -> None:
    try:
        with _silence():
            import nncf
            import openvino

            converted = openvino.convert_model(_Traceable(model[0]).eval(), example_input=example)
            small = nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_ASYM)
            openvino.save_model(small, path, compress_to_fp16=False)
    except Exception as error:  # each library has errors of its own
        raise ModelError(
            f"model {source.name}: does not convert to 8 bits: {one_line(str(error) or repr(error))}: set [model] precision to auto"
        ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Both libraries print tables and bars, and would report their use to Google Analytics if they found the package for it."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class _Traceable(torch.nn.Module):  # type: ignore[misc]
    """A Transformer module from tensors to a tensor."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self._transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        features = self._transformer({"input_ids": input_ids, "attention_mask": attention_mask})
        result: torch.Tensor = features[self._transformer.module_output_name]
        return result


class _EightBit(torch.nn.Module):  # type: ignore[misc]
    """Stands in for a Transformer module."""

    def __init__(self, path: Path, threads: int | None, output: str) -> None:
        super().__init__()
        with _silence():
            import openvino

        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads or os.cpu_count() or 1,
            "ENABLE_CPU_PINNING": False,  # workers beside each other would all sit on the first core
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        self._output = output

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        given = {name: features[name].numpy() for name in ("input_ids", "attention_mask")}
        # The result is overwritten by the next call; by then pooling has read it.
        hidden = self._request.infer(given, share_inputs=True, share_outputs=True)[0]
        return features | {self._output: torch.from_numpy(hidden)}
