"""Real weights for `mergekit-collapse demo`: a base, adapters of it, held-out rows, recipes."""
