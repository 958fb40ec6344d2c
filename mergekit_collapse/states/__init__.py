"""Running the models: the only modules with a forward pass."""
