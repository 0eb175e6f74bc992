"""Files, in folders or buckets → their states, and the documents in them.

`listing` finds files, `formats` cuts each into rows, `documents` makes typed Arrow batches of those and says what is
wrong with a row. Everything streams: memory holds one batch (`BATCH_DOCUMENTS`, `BATCH_CHARS`), whatever the source's size.
"""

from pipeline.source.documents import Reader, metadata_schema, reading_hash, sight
from pipeline.source.listing import Listing, Origin, identity, list_files, locate, place_of

__all__ = [
    "Listing",
    "Origin",
    "Reader",
    "identity",
    "list_files",
    "locate",
    "metadata_schema",
    "place_of",
    "reading_hash",
    "sight",
]
