"""Group passages by k-means or density, and name the groups.

`algorithm` is pure; `cluster_table` reads and writes tables.
"""
