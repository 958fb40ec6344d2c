"""Real weights for `mergekit-collapse demo`: a small base, adapters of it, held-out rows and two
recipes."""
