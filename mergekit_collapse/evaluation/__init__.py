"""The finished merge: what it scores, whether it is whole, and what it lost."""
