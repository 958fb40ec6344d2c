"""Tiny models with random weights, one builder per architecture, and a tokenizer for all of them.

Every configuration is spelled out and its parameters are counted: a misspelt key would be
ignored by transformers and build a model of full size.
"""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 384
HIDDEN = 32
LAYERS = 2

_SPECIAL = ["<pad>", "<s>", "</s>"]
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Two plus three is five; seven times six is forty-two; what is nine minus four?",
    "def add(first, second): return first + second  # the sum of two numbers",
    "This film was wonderful, the acting superb and the story moving from start to finish.",
    "That was the worst meal that I have ever had, and the service was even worse.",
    "Translate into French: where is the railway station? Où est la gare, s'il vous plaît ?",
    "Question: which planet is the largest in the solar system? Answer: Jupiter is the largest.",
]

_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    **_TOKENS,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that begins every text with ``<s>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_LLAMA_LIKE, tie_word_embeddings=False))


def _qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**_LLAMA_LIKE, tie_word_embeddings=True))


def _qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**_LLAMA_LIKE, head_dim=8, tie_word_embeddings=True))


def _mistral() -> PreTrainedModel:
    # Shorter than the longest test prompt, so that the window is felt.
    return MistralForCausalLM(MistralConfig(**_LLAMA_LIKE, sliding_window=8))


def _gemma() -> PreTrainedModel:
    return GemmaForCausalLM(GemmaConfig(**_LLAMA_LIKE, head_dim=8))


def _gemma2() -> PreTrainedModel:
    # Caps low enough to bend the logits of random weights.
    return Gemma2ForCausalLM(
        Gemma2Config(
            **_LLAMA_LIKE,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=8,
            final_logit_softcapping=3.0,
            attn_logit_softcapping=5.0,
        )
    )


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=128,
            n_embd=HIDDEN,
            n_layer=LAYERS,
            n_head=4,
            **_TOKENS,
        )
    )


def _bert() -> PreTrainedModel:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=128,
            pad_token_id=0,
        )
    )


def _t5() -> PreTrainedModel:
    # A deeper decoder: layers are numbered along it, not along the encoder.
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=HIDDEN,
            d_kv=8,
            d_ff=64,
            num_layers=LAYERS,
            num_decoder_layers=3,
            num_heads=4,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=2,
        )
    )


BUILDERS: dict[str, tuple[Callable[[], PreTrainedModel], int]] = {
    "llama": (_llama, 43_168),
    "qwen2": (_qwen2, 31_008),
    "qwen3": (_qwen3, 30_912),
    "mistral": (_mistral, 43_168),
    "gemma": (_gemma, 30_880),
    "gemma2": (_gemma2, 31_008),
    "gpt2": (_gpt2, 41_856),
    "bert": (_bert, 35_104),
    "t5": (_t5, 66_272),
}


def save_tiny_model(architecture: str, seed: int, folder: Path, tokenizer: Any) -> Path:
    """Build one model with weights that only the seed decides, and save it as safetensors."""
    build, parameters = BUILDERS[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        with torch.no_grad():
            # Fresh norms are all ones and fresh biases all zero, which would hide mistakes.
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    assert model.num_parameters() == parameters, (architecture, model.num_parameters())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_variant(source: Path, noise: float, seed: int, folder: Path) -> Path:
    """A copy of a model with Gaussian noise on every weight, in units of the tensor's spread."""
    shutil.copytree(source, folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(source / "model.safetensors")
    for name, tensor in sorted(tensors.items()):
        spread = tensor.std() if tensor.numel() > 1 else tensor.abs()
        tensors[name] = tensor + noise * spread * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_adapter(base: Path, folder: Path, seed: int, size: float) -> Path:
    """A LoRA with random weights in both factors, saved by PEFT itself."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base)
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
        model = peft.get_peft_model(model, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(size * torch.randn(parameter.shape))
        model.save_pretrained(folder)
    return folder
