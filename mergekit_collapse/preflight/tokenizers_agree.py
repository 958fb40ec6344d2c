"""Whether models read text alike: the same text must give the same token ids in all of them."""

from collections.abc import Sequence
from typing import Any

from mergekit.common import ModelReference
from transformers import AutoTokenizer

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.findings import Finding, error, shortened, warning

# Scripts, digits, code, spaces and odd characters: where tokenizers tend to part.
SAMPLE_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "It's 3,141.59 — isn't it? (Yes: 100%!)",
    "  two leading spaces,\ttab,\n\nblank line, trailing space ",
    "def f(x):\n    return {'a': x**2, \"b\": [1, 2, 3]}  # comment",
    "<div class='x'>a &amp; b</div> https://example.org/?q=1&r=2",
    "∑ x² ≤ ∫₀¹ f(t) dt ≈ 0.5 → ∞",
    "Größe, français, señor, İstanbul, naïve café",
    "Привет, как дела? Ελληνικά. Здравствуйте!",
    "你好，世界。日本語のテキスト。한국어 문장입니다.",
    "مرحبا بالعالم. שלום עולם. नमस्ते दुनिया. สวัสดีชาวโลก",
    "🙂👩‍👩‍👧 emoji\u200b and zero width; ﬁ ligature, ＡＢＣ full width",
    "1234567890 000123 12:30 2024-02-29 v1.2.3 0xFF 1e-5",
)
_SHOWN_IDS = 8
_ADVICE = "merge models of one tokenizer, or bring them to one with mergekit-tokensurgeon"


def load_tokenizer(
    reference: ModelReference, *, cache_dir: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Load the tokenizer that MergeKit would take for a model; a LoRA's is its base's.

    Raises:
        EvaluationError: there is none, or it cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            reference.model.path,
            revision=reference.model.revision,
            cache_dir=cache_dir,
            # Never None, which asks at the terminal.
            trust_remote_code=trust_remote_code,
        )
        # Some break only when they are used.
        for text in SAMPLE_TEXTS:
            _ids(tokenizer, text)
        return tokenizer
    # Broken vocabularies, missing backends and the network each raise their own kind.
    except Exception as problem:
        reason = " ".join(str(problem).split())
        advice = "restore its tokenizer files"
        if "trust_remote_code" in reason:
            reason = "it comes with its own code, which is not run"
            advice = "read its code, and give --trust-remote-code if you trust it"
        raise EvaluationError(
            f"{reference.model}: its tokenizer cannot be loaded: {reason[:300]}; {advice}"
        ) from problem


def compare_tokenizers(
    named: Sequence[tuple[str, Any]], texts: Sequence[str] = SAMPLE_TEXTS
) -> tuple[Finding, ...]:
    """Compare every tokenizer with the first.

    Args:
        named: name and tokenizer of each model.
        texts: what they are tried on, with special tokens as the tokenizer adds them.

    Returns:
        An error where a text or an ordinary token has other ids, with the first one; a warning
        where the vocabularies differ in tokens that none of the texts has.
    """
    if not named:
        return ()
    (first_name, first), *others = named
    expected = [_ids(first, text) for text in texts]
    found = []
    for name, tokenizer in others:
        text_difference = _first_text(expected, tokenizer, texts)
        if text_difference is not None:
            text, one, two = text_difference
            found.append(
                error(
                    name,
                    f"the same text gives different ids: {text[:60]!r} is {_short(two, one)} "
                    f"here and {_short(one, two)} in {first_name}",
                    _ADVICE,
                )
            )
        else:
            found += _vocabularies(first_name, first, name, tokenizer)
    return tuple(found)


def check_rows(
    name: str, tokenizer: Any, rows: int, texts: Sequence[str] = SAMPLE_TEXTS
) -> tuple[Finding, ...]:
    """An id past the end of the embedding cannot be looked up.

    A warning where only added tokens lie there: models are published that way, and ordinary
    text does not have them.
    """
    vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    past = sorted(token for token, number in vocabulary.items() if number >= rows)
    if not past:
        return ()
    used = max((i for text in texts for i in _ids(tokenizer, text)), default=0)
    largest = max(vocabulary.values())
    message = f"its tokenizer gives ids up to {largest:,}, but the embedding has {rows:,} rows"
    advice = "save the model after resize_token_embeddings"
    if used >= rows or any(token not in added for token in past):
        return (error(name, message, advice),)
    return (warning(name, f"{message}, none left for {shortened(map(repr, past))}", advice),)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def _first_text(
    expected: list[list[int]], tokenizer: Any, texts: Sequence[str]
) -> tuple[str, list[int], list[int]] | None:
    for text, one in zip(texts, expected, strict=True):
        two = _ids(tokenizer, text)
        if one != two:
            return text, one, two
    return None


def _vocabularies(first_name: str, first: Any, name: str, second: Any) -> list[Finding]:
    """Tokens that no text tried: an ordinary one that moved is an error, the rest a warning."""
    one, two = first.get_vocab(), second.get_vocab()
    if one == two:
        return []
    added = {*first.get_added_vocab(), *second.get_added_vocab()}
    added |= {*first.all_special_tokens, *second.all_special_tokens}
    moved = [t for t in one if t in two and one[t] != two[t] and t not in added]
    if moved:
        token = min(moved, key=lambda t: one[t])
        return [
            error(
                name,
                f"the same text gives different ids: {len(moved)} ordinary tokens, such as "
                f"{token!r}, {two[token]} here and {one[token]} in {first_name}",
                _ADVICE,
            )
        ]
    differ = sorted(t for t in {*one, *two} if one.get(t) != two.get(t))
    return [
        warning(
            name,
            f"{len(differ)} tokens differ from {first_name}'s, though ordinary text gives the "
            f"same ids: {shortened(map(repr, differ))}",
            "set tokenizer_source in the recipe if the merge should know them all",
        )
    ]


def _short(ids: list[int], other: list[int]) -> str:
    """Ids around the first difference."""
    same = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), None)
    start = max(0, (min(len(ids), len(other)) if same is None else same) - 2)
    shown = ", ".join(map(str, ids[start : start + _SHOWN_IDS]))
    lead = "…, " if start else ""
    return f"[{lead}{shown}{', …' if len(ids) > start + _SHOWN_IDS else ''}] ({len(ids)} ids)"
