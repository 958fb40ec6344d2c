"""All that a merge will do, saved in a file, and a merge that does exactly that."""
