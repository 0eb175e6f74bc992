"""Draw passages on a plane.

`coordinates` wraps UMAP; `map_table` writes pictures and pages.
"""
