"""Cut documents into passages with exact spans.

A change here changes the spec, so every table is encoded anew.
"""
