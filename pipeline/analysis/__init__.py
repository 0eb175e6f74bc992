"""The latent space: what lies near what, in groups, on a map, and on the ways between.

`clusters` groups the table's passages, `duplicates` finds what is there twice, `drift` what changed between two versions (`changes` tells it as a page),
`compression` makes vectors smaller, `maps` draws them in two dimensions, `ways` goes from text to text. `analysis` does it all in turn. All of it is worked out from versions of the table and says from which; nothing here changes a row.
"""
