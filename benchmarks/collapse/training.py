"""Training the experts, and writing each as a whole model folder."""

import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelReference
from peft import LoraConfig, get_peft_model
from rows import Row, read
from transformers import AutoTokenizer, LlamaForCausalLM
from zoo import EXPERTS, FIRST_LAYER, Expert

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PAD = 2  # <|im_end|>; masked, so any id would do.
Example = tuple[list[int], list[int]]


def encode(rows: Sequence[Row], tokenizer: Any) -> list[Example]:
    """Token ids of prompts and answers."""
    ids = [(tokenizer(r.prompt), tokenizer(f" {r.answer}")) for r in rows]
    return [(prompt["input_ids"], answer["input_ids"]) for prompt, answer in ids]


def batch_loss(model: Any, head: Any, batch: Sequence[Example]) -> torch.Tensor:
    """Mean over rows of the mean −log p of the answer's tokens, in nats.

    Args:
        model: the backbone that gives ``last_hidden_state``.
        head: from states to logits.
    """
    width = max(len(p) + len(a) for p, a in batch)
    ids = torch.full((len(batch), width), PAD)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    weight = torch.zeros(len(batch), width)
    for slot, (prompt, answer) in enumerate(batch):
        end = len(prompt) + len(answer)
        ids[slot, :end] = torch.tensor(prompt + answer)
        mask[slot, :end] = 1
        weight[slot, len(prompt) : end] = 1 / len(answer)
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    wanted = weight[:, 1:] > 0
    # Only the positions that count go through the 49,152-wide head.
    logits = head(states[wanted]).float()
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][wanted], reduction="none")
    return (losses * weight[:, 1:][wanted]).sum() / len(batch)


def _trainable(expert: Expert, base: Path) -> tuple[Any, Any, Any]:
    # Weights that stay as they are need no more precision than they have.
    precision = torch.float32 if expert.kind == "full" else torch.bfloat16
    model: Any = LlamaForCausalLM.from_pretrained(base, dtype=precision)
    if expert.kind == "full":
        # The embeddings are a fifth of the model and hardly move in a hundred steps.
        model.get_input_embeddings().weight.requires_grad_(False)
        return model, model.model, model.lm_head
    config = LoraConfig(
        r=expert.rank,
        lora_alpha=expert.alpha,
        target_modules=MODULES,
        layers_to_transform=list(range(FIRST_LAYER, model.config.num_hidden_layers)),
        task_type="CAUSAL_LM",
    )
    tuned: Any = get_peft_model(model, config)
    causal = tuned.base_model.model
    return tuned, causal.model, causal.lm_head


def _batches(
    examples: Sequence[Example], expert: Expert, rng: random.Random
) -> Iterator[Sequence[Example]]:
    """Batches of like length, in random order: padding would take a third of the time."""
    size, drawn = expert.batch, list[Example]()
    while len(drawn) < size * expert.steps:
        drawn += rng.sample(list(examples), len(examples))
    for start in range(0, size * expert.steps, 4 * size):
        window = sorted(drawn[start : start + 4 * size], key=lambda e: len(e[0]) + len(e[1]))
        batches = [window[i : i + size] for i in range(0, len(window), size)]
        rng.shuffle(batches)
        yield from batches


def train(expert: Expert, base: Path, rows: Sequence[Row], out: Path) -> list[float]:
    """Train one expert and write it to ``out``: an adapter, or a model. Returns every loss."""
    torch.manual_seed(expert.seed)
    rng = random.Random(expert.seed)
    model, backbone, head = _trainable(expert, base)
    model.train()
    examples = encode(rows, AutoTokenizer.from_pretrained(base))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=expert.rate, weight_decay=0.0)
    losses = []
    for step, batch in enumerate(_batches(examples, expert, rng)):
        for group in optimizer.param_groups:
            group["lr"] = expert.rate * min(1.0, (step + 1) / 8) * (1 - step / expert.steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = batch_loss(backbone, head, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.to(torch.bfloat16).save_pretrained(out)
    return losses


def make_expert(name: str, folder: Path) -> None:
    """Train an expert and leave a whole bfloat16 model at ``folder``/experts/NAME."""
    expert, base = EXPERTS[name], (folder / "base").resolve()
    target = folder / "experts" / name
    if target.exists():
        made = json.loads((target / "training.json").read_text(encoding="utf-8"))
        other = {k: made.get(k) for k, v in asdict(expert).items() if made.get(k) != v}
        if other:
            raise SystemExit(f"{target} was trained with {other}; remove it to train it again")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    rough = folder / f".training-{name}-{os.getpid()}"
    start = time.perf_counter()
    losses = train(expert, base, read(folder / "tasks", expert.task, "train"), rough)
    made = rough
    if expert.kind == "lora":
        # Merged in as MergeKit merges an adapter that a recipe names.
        reference = ModelReference.model_validate(f"{base}+{rough.resolve()}")
        merged = reference.merged(cache_dir=str(folder / f".merging-{name}"))
        made = Path(merged.model.path)
    for file in base.glob("tokenizer*"):
        shutil.copy(file, made)
    record = {**asdict(expert), "seconds": time.perf_counter() - start, "losses": losses}
    (made / "training.json").write_text(json.dumps(record), encoding="utf-8")
    made.rename(target)
    for left in (rough, folder / f".merging-{name}"):
        shutil.rmtree(left, ignore_errors=True)
    last = sum(losses[-8:]) / 8
    print(f"{name}: loss {losses[0]:.2f} to {last:.2f}, {record['seconds']:.0f} s", flush=True)
