"""One thing that the doctor has to say."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True)
class Symptom:
    """A ``problem`` means that a ``compat:`` block would not be honoured."""

    level: Level
    subject: str
    text: str
