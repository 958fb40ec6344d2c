"""A LoRA adapter's files: which base it declares, and whether its tensors fit a base."""

from collections.abc import Mapping
from dataclasses import dataclass

from mergekit.common import ModelPath

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.preflight.model_source import open_source, read_json

_FACTORS = {
    ".lora_A": "in",
    ".lora_B": "out",
    ".lora_embedding_A": "in",
    ".lora_embedding_B": "out",
}


@dataclass(frozen=True)
class AdapterFacts:
    """A LoRA adapter as its files describe it.

    Attributes:
        reference: as in the recipe.
        declared_base: the model that it says it was trained on; None where it says none.
        rank: of its config; a layer may have its own.
        targets: for each adapted weight of the base, the set of its two sizes; empty where
            the adapter's weights are pickled and so cannot be seen.
        replaced: shape by name of the weights that it brings in full (``modules_to_save``).
    """

    reference: str
    declared_base: str | None
    rank: int | None
    targets: Mapping[str, tuple[int, int]]
    replaced: Mapping[str, tuple[int, ...]]


def read_adapter(adapter: ModelPath, cache_dir: str | None = None) -> AdapterFacts:
    """Read an adapter's config and header.

    Raises:
        EvaluationError: it is missing, unreadable, no LoRA, or lacks half of a factor pair.
    """
    source = open_source(adapter, cache_dir)
    names = source.files()
    if "adapter_config.json" not in names:
        raise EvaluationError(
            f"{source.where}: has no adapter_config.json, so it is no LoRA adapter; what stands "
            "behind + must be a folder that peft's save_pretrained wrote"
        )
    config = read_json(source, "adapter_config.json")
    kind = config.get("peft_type")
    if kind not in ("LORA", "ADALORA"):
        raise EvaluationError(
            f"{source.where}: is a {kind!r} adapter, but only LoRA can be merged into a base; "
            "train a LoRA, or merge it into its base yourself"
        )
    base, rank = config.get("base_model_name_or_path"), config.get("r")
    targets: dict[str, tuple[int, int]] = {}
    replaced: dict[str, tuple[int, ...]] = {}
    if "adapter_model.safetensors" in names:
        shapes = source.header("adapter_model.safetensors").shapes
        targets, replaced = _split(shapes, source.where)
    elif "adapter_model.bin" not in names:
        raise EvaluationError(
            f"{source.where}: has neither adapter_model.safetensors nor adapter_model.bin; "
            "download the adapter again"
        )
    return AdapterFacts(
        reference=str(adapter),
        # A name with half a surrogate pair is valid JSON, but no valid path.
        declared_base=base.encode("utf-8", "replace").decode() if isinstance(base, str) else None,
        rank=rank if type(rank) is int else None,
        targets=targets,
        replaced=replaced,
    )


def misfits(
    adapter: AdapterFacts, tensors: Mapping[str, tuple[int, ...] | None]
) -> tuple[str, ...]:
    """What of an adapter does not fit a base's tensors, one line each."""
    found = []
    wanted = {**adapter.targets, **adapter.replaced}
    for target, sizes in wanted.items():
        name = _base_name(target, tensors)
        shape = tensors.get(name) if name is not None else None
        if name is None:
            found.append(f"{target} is not in the base")
        # A GPT-2 Conv1D stores its weight transposed; convolutions have more axes.
        elif shape is not None and len(shape) == 2 and sorted(shape) != sorted(sizes):
            found.append(f"{target} is {_product(sizes)}, in the base {_product(shape)}")
    return tuple(found)


def _split(
    shapes: Mapping[str, tuple[int, ...]], where: str
) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, ...]]]:
    """Sort an adapter's tensors into factor pairs and whole weights, by the base's names."""
    sides: dict[str, dict[str, int]] = {}
    replaced: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        factor = next((f for f in _FACTORS if f"{f}." in name or name.endswith(f)), None)
        target = name.removeprefix("base_model.model.")
        if factor is None:
            # DoRA magnitudes and the like belong to a pair that is checked itself.
            if ".lora_" not in name:
                target = target.replace(".modules_to_save.default.", ".")
                replaced[target.replace(".base_layer.", ".")] = shape
        elif len(shape) == 2:
            side = _FACTORS[factor]
            size = shape[1] if side == "in" else shape[0]
            sides.setdefault(target.split(factor)[0] + ".weight", {})[side] = size
    for target, pair in sides.items():
        if len(pair) != 2:
            raise EvaluationError(
                f"{where}: has only half of the LoRA pair for {target}; download it again"
            )
    return {target: (pair["out"], pair["in"]) for target, pair in sides.items()}, replaced


def _base_name(target: str, tensors: Mapping[str, tuple[int, ...] | None]) -> str | None:
    """The base's own name for an adapted weight; checkpoints may lack or add a prefix."""
    if target in tensors:
        return target
    ends = (n for n in tensors if n.endswith("." + target) or target.endswith("." + n))
    return next(ends, None)


def _product(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
