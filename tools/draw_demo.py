"""Draw what the gate printed as a picture: `draw_demo.py REPORT_TEXT OUT.svg`.

REPORT_TEXT holds what `mergekit-yaml` printed to standard error in the demo; progress bars are
left out. Needs `rich`, which huggingface_hub brings.
"""

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

_COLOURS = {"Error: REFUSED": "bold red", "ALLOWED": "bold green", "$ ": "bold cyan"}
_BARS = ("it/s]", "probe/s]", "s/it]", "s/probe]", "?it/s]")


def main() -> None:
    """Read, colour the lines that matter, write."""
    source, target = map(Path, sys.argv[1:3])
    lines = source.read_text(encoding="utf-8").replace("\r", "\n").split("\n")
    kept = [line for line in lines if not any(bar in line for bar in _BARS)]
    # A bar that is gone leaves an empty line.
    kept = [line for line, before in zip(kept, ["", *kept], strict=False) if line or before]
    with Path("/dev/null").open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=118, file=nowhere)
        for line in "\n".join(kept).strip().split("\n"):
            style = next((s for start, s in _COLOURS.items() if line.startswith(start)), "")
            console.print(Text(line, style=style))
        drawn = console.export_svg(title="mergekit-yaml")
    # Nothing is fetched when the picture is shown: the viewer's own monospace font will do.
    drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)
    target.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
