"""Sizes in bytes, as people write them and as they read them."""

import re

EXAMPLES = "8GB, 900MB or 512MiB"
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(?:([KMGT])(I?))?B?", re.IGNORECASE | re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int | None:
    """Bytes of a size such as ``8GB``, ``512MiB`` or ``0``; None if it is no size."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    number, letter, binary = match.groups()
    power = _POWERS[(letter or "").upper()]
    return int(float(number) * (1024 if binary else 1000) ** power)


def size_text(count: int) -> str:
    """Bytes in the unit that gives one to three digits before the point."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value, _ = value / 1000, units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
