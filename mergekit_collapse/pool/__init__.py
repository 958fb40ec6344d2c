"""From a pool of candidates to a recipe of those that merge best."""
