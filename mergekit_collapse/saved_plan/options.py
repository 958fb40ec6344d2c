"""MergeKit's options in a plan: which belong to it, and which the command line has its say in."""

from collections.abc import Collection, Iterator

from mergekit.common import dtype_from_name
from mergekit.options import MergeOptions

from mergekit_collapse.errors import InvalidRecipeError
from mergekit_collapse.findings import printable
from mergekit_collapse.saved_plan.record import PlannedOptions

# How the merge is computed, and where caches are; the merged model is the same with any.
FREE = frozenset(
    {
        *("async_write", "lazy_unpickle", "lora_merge_cache", "low_cpu_memory", "num_threads"),
        *("quiet", "read_to_gpu", "transformers_cache", "verbosity", "write_threads"),
    }
)
PLANNED = frozenset(PlannedOptions.model_fields)
# Other words for options of a plan.
STANDING_FOR = {"cuda": ("device",), "gpu_rich": ("device", "multi_gpu")}


def planned_options(options: MergeOptions) -> PlannedOptions:
    """The part of the options that a plan holds.

    Raises:
        InvalidRecipeError: a dtype that MergeKit does not have, or no size of a shard.
    """
    _require_dtype(options.lora_merge_dtype)
    if options.out_shard_size <= 0:
        raise InvalidRecipeError(
            f"--out-shard-size {options.out_shard_size}: a shard holds something; give a number "
            "above 0"
        )
    values = {name: getattr(options, name) for name in PLANNED}
    return PlannedOptions.model_validate(values | {"device": options.device or "cpu"})


def given_in(options: MergeOptions) -> frozenset[str]:
    """Names that a program set when it made the record; a device of ``cpu`` is the default."""
    given = set(options.model_fields_set)
    # MergeKit sets this one itself.
    if options.device == "cpu":
        given.discard("device")
    return frozenset(given)


def with_planned(options: MergeOptions, planned: PlannedOptions) -> MergeOptions:
    """The options that the planned merge is made with."""
    aliases = {"cuda": planned.device.startswith("cuda"), "gpu_rich": False}
    return options.model_copy(update=planned.model_dump() | aliases)


def contradictions(
    planned: PlannedOptions, options: MergeOptions, given: Collection[str]
) -> Iterator[str]:
    """Options that were given and that the plan has otherwise.

    A plan cannot switch remote code on: where it has that, it must be given again.

    Args:
        given: names of the options that were given.
    """
    names = {name for alias in given for name in STANDING_FOR.get(alias, (alias,))}
    for name in sorted(PLANNED & names):
        mine, own = getattr(options, name), getattr(planned, name)
        if mine != own:
            option = name.replace("_", "-")
            yield f"--{option}: the plan has {_shown(own)}, and {_shown(mine)} is given now"
    if planned.trust_remote_code and "trust_remote_code" not in names:
        yield (
            "--trust-remote-code: the plan was made with it, and no file may switch it on; read "
            "the models' code, and give --trust-remote-code again if you trust it"
        )


def _shown(value: object) -> str:
    return printable(str(value).lower() if value is None or isinstance(value, bool) else str(value))


def _require_dtype(name: str | None) -> None:
    try:
        dtype_from_name(name)
    except RuntimeError:
        raise InvalidRecipeError(
            f"--lora-merge-dtype {name}: MergeKit has no such dtype; write float32, float16 or "
            "bfloat16"
        ) from None
