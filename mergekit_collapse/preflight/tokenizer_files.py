"""A tokenizer's files: whether two are the same, without loading either."""

import hashlib
import json

from mergekit_collapse.preflight.model_source import ModelSource, read_json

# What ids depend on. A chat template or a length limit does not change them.
_VOCABULARY_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
_NO_EFFECT = frozenset(
    {
        "chat_template",
        "clean_up_tokenization_spaces",
        "extra_special_tokens",
        "is_local",
        "local_files_only",
        "max_length",
        "model_max_length",
        "name_or_path",
        "pad_to_multiple_of",
        "padding_side",
        "processor_class",
        "stride",
        "truncation_side",
        "truncation_strategy",
    }
)


def tokenizer_digest(source: ModelSource) -> str | None:
    """Digest of everything that token ids depend on; None where there is no tokenizer.

    Raises:
        EvaluationError: a tokenizer file cannot be read.
    """
    names = source.files()
    held = [name for name in _VOCABULARY_FILES if name in names]
    if not set(held) - {"added_tokens.json", "special_tokens_map.json"}:
        return None
    digest = hashlib.sha256()
    for name in held:
        content = source.text(name)
        digest.update(f"{name} {len(content)} ".encode() + content)
    # One tokenizer.json gives two kinds of ids when only one config asks for a leading BOS.
    if "tokenizer_config.json" in names:
        options = read_json(source, "tokenizer_config.json")
        kept = {key: value for key, value in options.items() if key not in _NO_EFFECT}
        digest.update(json.dumps(kept, sort_keys=True).encode())
    return digest.hexdigest()


def chat_template(source: ModelSource) -> str | None:
    """The model's default chat template, if it has one.

    Raises:
        EvaluationError: a tokenizer file cannot be read.
    """
    names = source.files()
    if "chat_template.jinja" in names:
        return source.text("chat_template.jinja").decode("utf-8", errors="replace").strip()
    if "tokenizer_config.json" not in names:
        return None
    template = read_json(source, "tokenizer_config.json").get("chat_template")
    # Older files hold a list of named templates.
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template.strip() if isinstance(template, str) else None
