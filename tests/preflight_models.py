"""Model folders as the preflight reads them: config, header and tokenizer, with holes for data.

The data of every safetensors file is a hole in a sparse file, so that a model of any size takes
no space, and a preflight that read it would be slow enough to notice.
"""

import json
import math
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 260,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1}


def llama_shapes(config):
    """Names and shapes of a Llama, which has no biases."""
    wide, inner, rows = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    narrow = wide // heads * shared
    shapes = {"model.embed_tokens.weight": [rows, wide], "model.norm.weight": [wide]}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}input_layernorm.weight": [wide],
            f"{at}post_attention_layernorm.weight": [wide],
            f"{at}self_attn.q_proj.weight": [wide, wide],
            f"{at}self_attn.k_proj.weight": [narrow, wide],
            f"{at}self_attn.v_proj.weight": [narrow, wide],
            f"{at}self_attn.o_proj.weight": [wide, wide],
            f"{at}mlp.gate_proj.weight": [inner, wide],
            f"{at}mlp.up_proj.weight": [inner, wide],
            f"{at}mlp.down_proj.weight": [wide, inner],
        }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = [rows, wide]
    return shapes


def write_safetensors(path, shapes, dtype="F32"):
    """A valid file whose data is a hole. Returns its length."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return 8 + len(text) + end


def byte_tokenizer(*, swap=(), added=(), chat_template=None):
    """One token per byte and four special ones; ``swap`` exchanges the ids of two letters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "<pad>", *letters])}
    if swap:
        one, two = swap
        vocab[one], vocab[two] = vocab[two], vocab[one]
    raw = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    if added:
        tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    if chat_template:
        tokenizer.chat_template = chat_template
    return tokenizer


def write_model(
    folder: Path, *, dtype="F32", without=(), extra=None, tokenizer=True, **changes
) -> Path:
    """A Llama with changes to its config.

    Args:
        folder: made if it is not there.
        dtype: of the header.
        without: names of tensors to leave out.
        extra: shapes to add, or to put in the place of others.
        tokenizer: True for the byte tokenizer, another one, or None for none.
        changes: of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = LLAMA | changes
    (folder / "config.json").write_text(json.dumps(config))
    shapes = llama_shapes(config) | (extra or {})
    shapes = {name: shape for name, shape in shapes.items() if name not in without}
    write_safetensors(folder / "model.safetensors", shapes, dtype)
    if tokenizer is not None:
        (byte_tokenizer() if tokenizer is True else tokenizer).save_pretrained(folder)
    return folder


def write_adapter(folder: Path, base, *, rank=2, wide=8, shapes=None) -> Path:
    """A LoRA of the query projections of a two-layer Llama."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": rank, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    shapes = dict(shapes or {})
    for layer in range(2):
        at = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        shapes |= {f"{at}.lora_A.weight": [rank, wide], f"{at}.lora_B.weight": [8, rank]}
    write_safetensors(folder / "adapter_model.safetensors", shapes)
    return folder
