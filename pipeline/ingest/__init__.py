"""Bring a table up to date with its source: scan, plan, embed, commit, verify.

The order of steps is fixed here; each step's work is done by a room below.
"""
