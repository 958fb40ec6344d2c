"""What published tables and finished merges say about the signals that the gate goes by."""
