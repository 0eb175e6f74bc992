"""Files, in folders or buckets → their states, and the documents in them.

`listing` finds files, `formats` cuts each into rows, `inference` finds the types of metadata, `documents` makes typed Arrow batches of
rows and says what is wrong with one. Everything streams: memory holds one batch (`BATCH_DOCUMENTS`, `BATCH_CHARS`), whatever the source's size.
"""

from latent.sources.documents import Reader, reading_hash, scan_file
from latent.sources.inference import metadata_schema, require_columns, spread
from latent.sources.listing import Listing, Origin, current_state, identity, list_files, locate, place_of

__all__ = [
    "Listing",
    "Origin",
    "Reader",
    "current_state",
    "identity",
    "list_files",
    "locate",
    "metadata_schema",
    "place_of",
    "reading_hash",
    "require_columns",
    "scan_file",
    "spread",
]
