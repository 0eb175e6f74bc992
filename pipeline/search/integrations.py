"""A table as a retriever of LangChain and of LlamaIndex, where these are installed. Passages carry their document, score and metadata columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from latent.search.results import Hit


def langchain_retriever(search: Callable[[str], list[Hit]]) -> Any:
    """A `langchain_core.retrievers.BaseRetriever`."""
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    class Retriever(BaseRetriever):  # type: ignore[misc]
        def _get_relevant_documents(self, query: str, *, run_manager: object) -> list[Document]:  # noqa: ARG002  LangChain's
            hits = search(query)
            return [Document(id=hit.chunk_id, page_content=_read(hit), metadata=_told(hit)) for hit in hits]

    return Retriever()


def llama_index_retriever(search: Callable[[str], list[Hit]]) -> Any:
    """A `llama_index.core.retrievers.BaseRetriever`."""
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    class Retriever(BaseRetriever):  # type: ignore[misc]
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            hits = search(query_bundle.query_str)
            return [
                NodeWithScore(node=TextNode(id_=hit.chunk_id, text=_read(hit), metadata=_told(hit)), score=hit.score)
                for hit in hits
            ]

    return Retriever()


def _read(hit: Hit) -> str:
    return hit.before + hit.text + hit.after


def _told(hit: Hit) -> dict[str, object]:
    """The metadata columns, the document, and the score, which is called search_score where a column is called score."""
    name = next(each for each in ("score", "search_score", "_score") if each not in hit.metadata)
    return {**hit.metadata, "doc_id": hit.doc_id, name: hit.score}
