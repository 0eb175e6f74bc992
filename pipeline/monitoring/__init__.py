"""Prometheus figures of runs and tables, and the endpoint that shows them.

Change what is measured here, not in the rooms that are measured.
"""
