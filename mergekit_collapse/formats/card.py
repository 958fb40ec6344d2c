"""The section about the gate in a merged model's card."""

from pathlib import Path
from typing import Any

from mergekit_collapse.formats.markdown import checks, decisions, experts, footing, joined, tasks
from mergekit_collapse.formats.missing_keys import complete
from mergekit_collapse.formats.plain import plain


def card_section(document: dict[str, Any]) -> str:
    """Verdicts, scores, what the evaluation found, probe digest and versions, in Markdown.

    Args:
        document: of ``report.json``.
    """
    document = complete(document)
    version = document["versions"].get("mergekit-collapse", "of an unknown version")
    blocks = [["## Compatibility"], [f"Checked by mergekit-collapse {plain(version)}."]]
    return joined(
        [
            *blocks,
            *decisions(document),
            experts(document),
            tasks(document),
            checks(document),
            footing(document),
        ]
    )


def add_to_card(document: dict[str, Any], model: Path) -> None:
    """Append the section to the model's ``README.md``, where MergeKit wrote one."""
    card = model / "README.md"
    if card.exists():
        text = card.read_text(encoding="utf-8").rstrip("\n")
        card.write_text(f"{text}\n\n{card_section(document)}", encoding="utf-8")
