"""The steps of a change to a recipe: what to aim at, the changed recipe, and its own geometry."""
