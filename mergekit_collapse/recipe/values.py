"""What the blocks of a recipe are made of: kinds of values, and what is wrong with a bad one."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _reject_boolean(value: Any) -> Any:
    """YAML's ``yes`` and ``true`` would pass for 1 in Python."""
    if isinstance(value, bool):
        raise ValueError(f"a number is expected, got {str(value).lower()}")
    return value


def listed(value: Any) -> Any:
    """``space: hidden`` means ``space: [hidden]``."""
    return [value] if isinstance(value, str) else value


def without_nul(value: str) -> str:
    """The text itself; what a path cannot hold raises a bare ValueError wherever it is opened.

    Raises:
        ValueError: it holds a NUL character.
    """
    if "\0" in value:
        raise ValueError(f"holds a NUL character: {value[:60]!r}; remove it")
    return value


Number = Annotated[float, BeforeValidator(_reject_boolean), Field(allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_reject_boolean)]
Flag = Annotated[bool, Field(strict=True)]
Path = Annotated[str, Field(min_length=1), AfterValidator(without_nul)]
Share = Annotated[Number, Field(ge=0, le=1)]
SpaceName = Literal["hidden", "predictive"]


class Block(BaseModel):
    """A mapping of known keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def wrote(self, key: str) -> bool:
        """Whether the value is the author's own, and no default.

        A block that is read back from its own ``model_dump()`` has every key written.
        """
        return key in self.model_fields_set
