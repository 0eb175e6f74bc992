"""Retrieval: a query in words → the passages that answer it.

    from latent import open_table
    open_table("config.toml").search("how do I parse a date", k=10, mode="hybrid")

What a score is depends on the way of searching; higher is better, and scores of one way compare with each other:

    vector    cosine of query and passage, in [-1, 1]
    text      BM25 of the query's words, above 0
    hybrid    sum over both lists of 1 / (60 + rank), at most 2 / 61
    reranked  what the cross-encoder gives for query and passage together

`table` opens and searches; `ranking` orders what was found; `hit` is what a caller gets.
"""

from latent.search.results import Hit
from latent.search.searcher import SearchOptions, SearchTable, open_table

__all__ = ["Hit", "SearchOptions", "SearchTable", "open_table"]
