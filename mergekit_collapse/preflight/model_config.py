"""A model's ``config.json`` as transformers understands it, defaults filled in."""

from typing import Any

from mergekit.common import ModelReference
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers import __version__ as transformers_version

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.preflight.model_source import ModelSource

# Beyond the deepest model and the most labels of any; what is larger fills the memory.
MAX_LAYERS = 100_000
_REPEATED = ("layers", "layer", "labels")

# Compared by name (architecture, sizes, vocabulary), or without effect on a forward pass.
_NO_SETTING = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "gradient_checkpointing",
        "hidden_size",
        "initializer_factor",
        "initializer_range",
        "intermediate_size",
        "label2id",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "quantization_config",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "transformers_weights",
        "use_cache",
        "vocab_size",
    }
)


def load_config(
    reference: ModelReference,
    source: ModelSource,
    raw: dict[str, Any],
    cache_dir: str | None,
    trust_remote_code: bool,
) -> PretrainedConfig:
    """Turn a ``config.json`` into a configuration, as MergeKit does.

    Raises:
        EvaluationError: the model type is unknown here, needs remote code, or has bad values.
    """
    model_type, remote = raw.get("model_type"), isinstance(raw.get("auto_map"), dict)
    if not isinstance(model_type, str):
        raise EvaluationError(
            f"{source.where}: config.json has no model_type; it is not of transformers, so "
            "convert the model first"
        )
    known = model_type in CONFIG_MAPPING
    if not known and remote and not trust_remote_code:
        raise EvaluationError(
            f"{source.where}: model type {model_type!r} comes with its own code, which is not "
            "run; read it, and give --trust-remote-code if you trust it"
        )
    if not known and not remote:
        raise EvaluationError(
            f"{source.where}: transformers {transformers_version} does not know model type "
            f"{model_type!r}; correct config.json, or install a version that knows it"
        )
    huge = _huge_count(raw)
    if huge is not None:
        raise EvaluationError(f"{source.where}: config.json says {huge}; correct the file")
    try:
        if remote and trust_remote_code:
            config: PretrainedConfig = AutoConfig.from_pretrained(
                reference.model.path,
                revision=reference.model.revision,
                cache_dir=cache_dir,
                trust_remote_code=True,
            )
        else:
            config = CONFIG_MAPPING[model_type].from_dict(raw)
        config.get_text_config()
    # A bad value shows as whatever the model's own validation or arithmetic raises.
    except Exception as problem:
        reason = " ".join(str(problem).split())
        raise EvaluationError(
            f"{source.where}: config.json is not valid for model type {model_type!r}: {reason}; "
            "correct the file"
        ) from problem
    names = config.architectures
    if reference.override_architecture:
        names = [reference.override_architecture]
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise EvaluationError(
            f"{source.where}: config.json must name one architecture, got {names!r}; write the "
            'class of the model, such as "architectures": ["LlamaForCausalLM"]'
        )
    config.architectures = names
    return config


def _huge_count(values: dict[str, Any]) -> str | None:
    """A number of layers or labels for which transformers or MergeKit would run out of memory."""
    for key, value in values.items():
        if isinstance(value, dict):
            found = _huge_count(value)
            if found is not None:
                return found
        elif type(value) in (int, float) and value > MAX_LAYERS and key.endswith(_REPEATED):
            return f"{key} is {value}"
    return None


def settings_of(config: PretrainedConfig) -> dict[str, Any]:
    """Every value that can change what the model computes, nested ones under dotted names."""
    flat: dict[str, Any] = {}
    # GPT-2 calls its hidden_size n_embd, T5 its own d_model.
    own_names = {own for name, own in config.attribute_map.items() if name in _NO_SETTING}
    _flatten(config.to_dict(), "", _NO_SETTING | own_names, flat)
    return flat


def _flatten(
    values: dict[Any, Any], prefix: str, left_out: frozenset[str], into: dict[str, Any]
) -> None:
    for key, value in values.items():
        if key in left_out or "dropout" in str(key):
            continue
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{key}.", left_out, into)
        else:
            into[f"{prefix}{key}"] = value
