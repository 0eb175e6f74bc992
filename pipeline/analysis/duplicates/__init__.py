"""Find near-duplicates and outliers.

`neighbors` is pure; `find_duplicates` reads and writes tables.
"""
