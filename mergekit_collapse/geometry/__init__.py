"""Pure mathematics: states in, distances, balls and scores out."""
