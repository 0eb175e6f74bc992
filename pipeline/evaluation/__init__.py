"""Measure answers against judged queries.

Metrics follow ir-measures; change data formats in `datasets`.
"""
