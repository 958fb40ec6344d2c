"""The environment variable that turns the gate off, or into a warning."""

import os
from typing import Literal, cast, get_args

from mergekit_collapse.errors import InvalidRecipeError

SWITCH = "MERGEKIT_COLLAPSE"
Mode = Literal["1", "warn", "0"]


def gate_mode() -> Mode:
    """``1`` gates (the default), ``warn`` measures but never blocks, ``0`` ignores the block.

    Raises:
        InvalidRecipeError: anything else, with the valid values.
    """
    value = os.environ.get(SWITCH, "").strip() or "1"
    if value not in get_args(Mode):
        raise InvalidRecipeError(
            f"environment variable {SWITCH}: got {value!r}; valid are 1 (gate, the default), "
            "warn (measure, never block) and 0 (ignore the compat: block)"
        )
    return cast(Mode, value)
