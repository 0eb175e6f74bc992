"""What 8-bit arithmetic costs a model's vectors: measured when the model is converted, kept with what was converted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latent.errors import ModelError
from latent.types import ResolvedModel

GROUP = 128  # activations quantised with one scale: OpenVINO's DYNAMIC_QUANTIZATION_GROUP_SIZE
PASSAGES, PASSAGE_CHARS = 128, 200
NEAREST = 10
FILE = "loss.json"


@dataclass(frozen=True)
class QuantizationError:
    """Vectors compared with those in float32, on passages of Python's documentation."""

    cosine: float  # on average
    least: float  # the least cosine
    kept: float  # the share of a passage's ten nearest that are the same
    passages: int

    def __str__(self) -> str:
        return (
            f"cosine to float32 {self.cosine:.4f} on average, {self.least:.4f} at least; "
            f"{self.kept:.0%} of the ten nearest the same ({self.passages} passages)"
        )

    @staticmethod
    def between(vectors: npt.NDArray[np.float32], exact: npt.NDArray[np.float32]) -> QuantizationError:
        """Of unit vectors (n, dim)."""
        cosines = (vectors * exact).sum(axis=1)
        found, wanted = (np.argsort(-(m @ m.T - 2 * np.eye(len(m))), axis=1)[:, :NEAREST] for m in (vectors, exact))
        kept = np.mean([len(np.intersect1d(a, b)) / NEAREST for a, b in zip(found, wanted, strict=True)])
        return QuantizationError(float(cosines.mean()), float(cosines.min()), float(kept), len(vectors))

    def keep(self, model: ResolvedModel) -> None:
        """Say that the model is converted, and what that cost. Whole or not at all."""
        path = kept_in(model) / FILE
        path.with_suffix(".part").write_text(json.dumps(asdict(self)))
        path.with_suffix(".part").replace(path)


def known_loss(model: ResolvedModel) -> QuantizationError | None:
    """As measured when the model was converted on this machine; None where it was not yet. Raises ModelError as `kept_in`."""
    path = kept_in(model) / FILE
    return QuantizationError(**json.loads(path.read_text())) if path.is_file() else None


def kept_in(model: ResolvedModel) -> Path:
    """The folder of the converted model, beside the hub's cache. Raises ModelError where OpenVINO is not installed."""
    from huggingface_hub import cached_assets_path

    try:
        made_by = f"openvino-{version('openvino')}-nncf-{version('nncf')}"
    except PackageNotFoundError as missing:
        raise ModelError(f"[model] precision int8 needs {missing.name}: install latent[int8], or set precision to auto") from None
    try:
        return Path(cached_assets_path("latent", namespace=model.digest, subfolder=f"int8-{GROUP}-{made_by}"))
    except OSError as error:
        raise ModelError(f"model {model.name}: no place for its 8-bit weights: {error}: set HF_HOME to a folder") from None


def passages() -> list[str]:
    """The same for every model."""
    from pydoc_data.topics import topics

    paragraphs = (part for topic in sorted(topics) for part in topics[topic].split("\n\n"))
    return list(islice((part for part in paragraphs if len(part) > PASSAGE_CHARS), PASSAGES))
