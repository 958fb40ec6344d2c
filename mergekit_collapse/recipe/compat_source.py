"""The ``compat:`` block on its way through MergeKit: opaque to it, plain data in YAML and JSON."""

import copy
import math
from typing import Any, NoReturn

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class CompatSource:
    """The value of ``compat:`` just as the recipe has it, not yet validated.

    MergeKit walks every list, dict and string of a dumped configuration, and turns a string that
    equals a merge's name, or holds a ``+`` or an ``@``, into a model reference. So this is none of
    these three (and no dataclass, which pydantic dumps as a dict), and only JSON mode, from which
    MergeKit writes YAML, sees what is inside.
    """

    __slots__ = ("_value",)
    _value: Any

    def __init__(self, value: Any) -> None:
        object.__setattr__(self, "_value", copy.deepcopy(value))

    @property
    def value(self) -> Any:
        """A copy, so that nobody changes the block under the configuration that holds it."""
        return copy.deepcopy(self._value)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"CompatSource is frozen: cannot set {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CompatSource) and self._value == other._value

    # It holds dicts and lists; MergeConfiguration, which holds it, has no hash either.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"CompatSource({self._value!r})"

    def __reduce__(self) -> tuple[type["CompatSource"], tuple[Any]]:
        # copy and pickle would set attributes, which is refused.
        return CompatSource, (self._value,)

    @classmethod
    def of(cls, value: Any) -> "CompatSource":
        """From itself or from plain data."""
        return value if isinstance(value, CompatSource) else cls(value)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: Any, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.of,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda source: _as_plain_data(source.value), when_used="json"
            ),
        )


def _as_plain_data(value: Any) -> Any:
    """What JSON can hold, with nothing lost on the way.

    pydantic writes NaN and infinity as null, and null is what a budget that nobody set looks like:
    a merge that mergekit-multi would have to refuse for its ``.nan`` would pass. The string is
    refused as the number is.
    """
    if isinstance(value, dict):
        return {key: _as_plain_data(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_plain_data(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return value
