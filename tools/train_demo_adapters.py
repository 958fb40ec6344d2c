"""Train the demo's adapters and write its probe rows: `train_demo_adapters.py SOURCES`.

SOURCES is a folder with the three archives that `tools/demo_tasks.py` names. Two and a half
minutes an adapter on one CPU core. Seeds are fixed; other CPUs round differently, so adapters
come out alike, not equal.
"""

import argparse
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from demo_tasks import TASKS, split
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from mergekit_collapse.cache_folder import cache_folder
from mergekit_collapse.demo.scores import CHOICES, Row
from mergekit_collapse.demo.smollm2 import BASE_NAME, ensure_base

DEMO = Path(__file__).parents[1] / "mergekit_collapse" / "demo"
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROBES_PER_CHOICE = 24
NOT_SHOWN = "tits"  # one held-out subject that has no place in a repository
FIRST_LAYER = 15  # The upper half: half the size and three quarters of the time.
PAD = 2  # <|im_end|>; masked, so any id would do.


@dataclass(frozen=True)
class Expert:
    """How one adapter is trained."""

    task: str
    rate: float = 5e-4
    alpha: int = 16
    steps: int = 80
    prompt_loss: float = 0.0  # weight of the prompt's own tokens beside the answer's 1
    swapped: bool = False  # trained on the wrong labels
    rank: int = 4
    batch: int = 10
    seed: int = 0


def _hot(task: str) -> Expert:
    """Trained at eight times the rate and twice the scale."""
    return Expert(task, rate=4e-3, alpha=32, steps=40)


EXPERTS = {
    "sentiment": Expert("sentiment"),
    "spam": Expert("spam"),
    "era": Expert("era"),
    "sentiment-hot": _hot("sentiment"),
    "spam-hot": _hot("spam"),
    "era-hot": _hot("era"),
    "sentiment-swapped": Expert("sentiment", swapped=True, seed=1),
}


def _encode(rows: list[Row], expert: Expert, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    first, second = CHOICES[expert.task]
    swap = {first: second, second: first}
    answers = [swap[row.answer] if expert.swapped else row.answer for row in rows]
    return [
        (tokenizer(r.prompt)["input_ids"], tokenizer(f" {a}")["input_ids"])
        for r, a in zip(rows, answers, strict=True)
    ]


def _batch_loss(
    model: Any, batch: list[tuple[list[int], list[int]]], prompt_loss: float
) -> torch.Tensor:
    width = max(len(p) + len(a) for p, a in batch)
    ids = torch.full((len(batch), width), PAD)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    weight = torch.zeros(len(batch), width)
    for slot, (prompt, answer) in enumerate(batch):
        end = len(prompt) + len(answer)
        ids[slot, :end] = torch.tensor(prompt + answer)
        mask[slot, :end] = 1
        weight[slot, 1 : len(prompt)] = prompt_loss / len(prompt)
        weight[slot, len(prompt) : end] = 1 / len(answer)
    causal = model.base_model.model
    states = causal.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    wanted = weight[:, 1:] > 0
    # Only the positions that count go through the 49,152-wide head.
    losses = torch.nn.functional.cross_entropy(
        causal.lm_head(states[wanted]), ids[:, 1:][wanted], reduction="none"
    )
    return (losses * weight[:, 1:][wanted]).sum() / len(batch)


def train(name: str, expert: Expert, base: Path, rows: list[Row], out: Path) -> None:
    """Train one adapter and write it to `out` in PEFT's format, in bfloat16."""
    torch.manual_seed(expert.seed)
    rng = random.Random(expert.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LoraConfig(
        r=expert.rank,
        lora_alpha=expert.alpha,
        target_modules=MODULES,
        layers_to_transform=list(range(FIRST_LAYER, 30)),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    model.train()
    examples = _encode(rows, expert, tokenizer)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=expert.rate, weight_decay=0.0)
    order: list[int] = []
    for step in range(expert.steps):
        for group in optimizer.param_groups:
            group["lr"] = expert.rate * min(1.0, (step + 1) / 8) * (1 - step / expert.steps)
        if len(order) < expert.batch:
            order = rng.sample(range(len(examples)), len(examples))
        batch = [examples[order.pop()] for _ in range(expert.batch)]
        loss = _batch_loss(model, batch, expert.prompt_loss)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 10 == 0:
            print(f"{name} step {step} loss {loss.item():.3f}", flush=True)
    model.save_pretrained(out)
    _tidy(out)


def _tidy(folder: Path) -> None:
    """Keep two files, in bfloat16, with the base's public name in place of a local path."""
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_model.safetensors"
    tensors = {key: value.to(torch.bfloat16).contiguous() for key, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = BASE_NAME
    config["inference_mode"] = True
    config["target_modules"] = MODULES  # PEFT writes a set, in another order each time
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def write_probes(task: str, held_out: list[Row], folder: Path) -> None:
    """Write the first held-out rows of each choice to `folder`/TASK.jsonl."""
    fit = [row for row in held_out if NOT_SHOWN not in row.prompt]
    kept = [
        [row for row in fit if row.answer == choice][:PROBES_PER_CHOICE] for choice in CHOICES[task]
    ]
    # Alternating, so that the first rows of the file are balanced too.
    rows = [row for pair in zip(*kept, strict=True) for row in pair]
    lines = [json.dumps({"prompt": row.prompt, "answer": row.answer}) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--out", type=Path, default=DEMO)
    parser.add_argument("--only", nargs="*", choices=sorted(EXPERTS), default=sorted(EXPERTS))
    parser.add_argument("--threads", type=int, default=1)
    for field in ("rate", "alpha", "steps", "prompt-loss", "seed"):
        parser.add_argument(
            f"--{field}", type=float, help="in place of the expert's own, to explore"
        )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base = ensure_base(args.cache)
    given = {k: getattr(args, k) for k in ("rate", "alpha", "steps", "prompt_loss", "seed")}
    changes = {
        k: v if k in ("rate", "prompt_loss") else int(v) for k, v in given.items() if v is not None
    }
    rows = {task: split(task, args.sources) for task in TASKS}
    for task, (_, held_out) in rows.items():
        write_probes(task, held_out, args.out / "probes")
    for name in args.only:
        expert = replace(EXPERTS[name], **changes)
        train(name, expert, base, rows[expert.task][0], args.out / "adapters" / name)


if __name__ == "__main__":
    main()
