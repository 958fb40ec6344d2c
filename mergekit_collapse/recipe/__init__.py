"""A MergeKit recipe with its ``compat:`` block, resolved; no file of a model is opened."""
