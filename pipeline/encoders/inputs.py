"""Texts as sentence-transformers takes them without opening one.

Given a bare string that is a URL or the path of an image, a recording or a video, sentence-transformers fetches or opens it, if the model takes such
media. `{"text": …}` is text, whatever it says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

PROBE = "a"  # a text that every model has a vector for
OWN_MODULES = "sentence_transformers."


class TextFeatures:
    """Makes a model's features of texts; they are never opened as files or fetched."""

    def __init__(self, model: Any) -> None:
        """Raise what the model raises if it takes texts in no way."""
        self._chats = "message" in getattr(model[0], "modality_config", ())
        # Modules of a tokenizer alone take strings only, and open none; behind a router they are found by "modality".
        ways: list[Callable[..., Any]] = [
            lambda texts, **given: model.preprocess([{"text": text} for text in texts], **given),
            lambda texts, **given: model.preprocess(list(texts), modality="text", **given),
        ]
        if not type(model[0]).__module__.startswith(OWN_MODULES):  # code that the user trusts
            ways.append(lambda texts, **given: model.preprocess(list(texts), **given))
        self._preprocess = _first_that_works(ways)

    def __call__(self, texts: Sequence[str], prompt: str = "") -> dict[str, Any]:
        """The features of texts with the prompt before each, or where the model's chat template has a place for it."""
        if prompt and self._chats:
            return dict(self._preprocess(texts, prompt=prompt))
        return dict(self._preprocess([prompt + text for text in texts]))


def pair_inputs(cross_encoder: Any) -> Callable[[str, str], Any]:
    """Return what makes a query and a passage the input of a cross-encoder, which opens neither.

    A chat template of several kinds of content takes each string for the kind that it looks like. All else takes two strings for a pair of texts.
    """
    first = cross_encoder[0]
    formatter = getattr(first, "input_formatter", None)
    if "message" in getattr(first, "modality_config", ()) and getattr(formatter, "message_format", "flat") == "structured":
        return lambda query, passage: ({"text": query}, {"text": passage})
    return lambda query, passage: (query, passage)


def _first_that_works(ways: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """Raise what the last way raises if none works."""
    for way in ways[:-1]:
        with contextlib.suppress(Exception):  # each module, and the code of a trusted model, has errors of its own
            way([PROBE])
            return way
    ways[-1]([PROBE])
    return ways[-1]
