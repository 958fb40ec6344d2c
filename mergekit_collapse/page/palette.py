"""Colours of a heat map that can be read by everyone, in light and in dark."""

from dataclasses import dataclass

STEPS = 12
# Lightness alone orders both scales, so they survive colour blindness and a grey print.
_LIGHT = ("#f4f8fb", "#cfe1f0", "#93bfde", "#4a90c2", "#1f63a0", "#0b3c6f", "#06254a")
_DARK = ("#151c26", "#17314d", "#1a4a75", "#2a6ea6", "#5f9fd0", "#a3cdea", "#e3f1fb")
_INKS = ("#10161d", "#ffffff")


@dataclass(frozen=True)
class Shade:
    """One step of the scale: a background, and the ink that stands out on it."""

    background: str
    ink: str


def shades(dark: bool = False) -> tuple[Shade, ...]:
    """From the same to unrelated: away from the page's own ground."""
    stops = _DARK if dark else _LIGHT
    return tuple(_shade(stops, step / (STEPS - 1)) for step in range(STEPS))


def step(squared: float, top: float) -> int:
    """Which shade D² gets: by the distance, not its square, so that small ones differ too.

    Args:
        squared: D², not negative.
        top: D² of the last shade; what is above has it too.
    """
    if not top > 0:
        return 0
    return min(STEPS - 1, int((squared / top) ** 0.5 * STEPS)) if squared < top else STEPS - 1


def contrast(first: str, second: str) -> float:
    """Contrast of two colours, from 1 to 21 (WCAG 2.2, relative luminance)."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _shade(stops: tuple[str, ...], at: float) -> Shade:
    whole = min(int(at * (len(stops) - 1)), len(stops) - 2)
    part = at * (len(stops) - 1) - whole
    mixed = [
        round(a + (b - a) * part)
        for a, b in zip(_channels(stops[whole]), _channels(stops[whole + 1]), strict=True)
    ]
    background = "#" + "".join(f"{channel:02x}" for channel in mixed)
    return Shade(background, max(_INKS, key=lambda ink: contrast(ink, background)))


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: str) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in _channels(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
