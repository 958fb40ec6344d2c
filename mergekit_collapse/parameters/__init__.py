"""How far experts conflict in parameter space, the baseline that hidden states are held against."""
