"""Which layer of each expert a layer of the merged model is made from."""

from collections.abc import Sequence

from mergekit.config import MergeConfiguration, OutputSliceDefinition

from mergekit_collapse.recipe.recipe import Recipe


def source_layers(
    recipe: Recipe, depths: Sequence[int], merged_depth: int
) -> tuple[tuple[int | None, ...], ...]:
    """Per layer 0..L of the merged model, the layer of each expert that it compares with.

    Layer 0 is the embeddings. The last layer, after the final norm, compares with each
    expert's last; every other one with the layer that the recipe makes it from, unless that
    is an expert's last, whose state is known after its norm only.

    Args:
        recipe: the recipe.
        depths: L of each expert.
        merged_depth: L of the merged model.
    """
    rows: list[tuple[int | None, ...]]
    slices = _slices(recipe.config)
    if slices is None:
        rows = [(layer,) * len(depths) for layer in range(merged_depth)]
    else:
        rows = []
        for part in slices:
            first = {source.model: source.layer_range[0] for source in part.sources}
            start, end = part.sources[0].layer_range
            for offset in range(end - start):
                rows.append(
                    tuple(
                        first[expert] + offset if expert in first else None
                        for expert in recipe.experts
                    )
                )
    if len(rows) != merged_depth:  # several stacks: which layer is whose is not known
        rows = [(None,) * len(depths)] * merged_depth
    # A layer's state is numbered after the layer: layer 0 of the stack gives state 1.
    inner = [
        tuple(
            source + 1 if source is not None and source + 1 < depth else None
            for source, depth in zip(row, depths, strict=True)
        )
        for row in rows[: merged_depth - 1]
    ]
    return (tuple(0 for _ in depths), *inner, tuple(depths))


def _slices(config: MergeConfiguration) -> Sequence[OutputSliceDefinition] | None:
    """The slices of a model's one stack, none for several; None if all models are merged whole."""
    if config.slices:
        return list(config.slices)
    modules = list((config.modules or {}).values())
    if not any(module.slices for module in modules):
        return None
    return list(modules[0].slices or ()) if len(modules) == 1 else []
