"""Numbers and names as a page shows them."""

from mergekit_collapse.findings import printable

_LONGEST = 34
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def three(value: float) -> str:
    """Three significant digits: ``0.300``, ``18.9``, ``1,230``, ``4.56×10⁻⁷``, ``0``."""
    if value == 0:
        return "0"
    size = abs(value)
    if not 1e-4 <= size < 999_500:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    elif size >= 999.5:
        text = f"{float(f'{value:.3g}'):,.0f}"
    else:
        text = f"{value:#.3g}".rstrip(".")
    return text.replace("-", "−")


def limit(value: float) -> str:
    """A limit as someone wrote it: ``0.3``, ``20``."""
    return f"{value:g}".replace("-", "−")


def percent(value: float) -> str:
    """A change in percent, always with its sign: ``−12.3 %``, ``+0.400 %``."""
    return f"{'+' if value > 0 else ''}{three(value)} %"


def short(name: str, longest: int = _LONGEST) -> str:
    """A name with its middle left out where it is long: both ends tell names apart."""
    name = printable(name) or "(no name)"
    if len(name) <= longest:
        return name
    head = longest // 3
    return f"{name[:head]}…{name[head + 1 - longest :]}"
