"""Test whether documents moved between two versions.

`statistics` is pure; `compare_versions` reads tables; `change_report` writes the page.
"""
