"""Try smaller vectors and measure what they lose.

The codecs themselves are `store.codec`.
"""
