"""The latent space: what lies near what, in groups, on a map, and on the ways between.

`clusters` groups the table's passages, `maps` draws them in two dimensions, `ways` goes from text to text. All of it is worked out from one version of
the table and says which; nothing here changes a row.
"""
