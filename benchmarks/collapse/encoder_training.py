"""Training one expert of the encoder, and scoring any encoder under a head."""

import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from encoder_experts import EXPERTS, Expert
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForSequenceClassification

from mergekit_collapse.states.pooling import pool

HEAD_RATE = 2e-3
WARM_UP = 8
LONGEST = 128


@dataclass(frozen=True)
class Rows:
    """Texts, and the number of each one's right answer among its task's choices."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


def read_rows(folder: Path, expert: Expert, part: str) -> Rows:
    """The rows of ``folder``/tasks/TASK/PART.jsonl as the expert sees them."""
    offered = choices(folder, expert.task)
    lines = (folder / "tasks" / expert.task / f"{part}.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    shift = int(expert.rotated)
    labels = tuple((offered.index(row["answer"]) + shift) % len(offered) for row in rows)
    return Rows(tuple(row["prompt"] for row in rows), labels)


def choices(folder: Path, task: str) -> list[str]:
    """A task's answers, in the order in which heads number them."""
    offered: list[str] = json.loads((folder / "tasks.json").read_text("utf-8"))[task]["choices"]
    return offered


def load_encoder(folder: Path, dtype: torch.dtype) -> Any:
    """A base, an expert or a merge, in evaluation mode, without dropout."""
    model: Any = BertForSequenceClassification.from_pretrained(folder, dtype=dtype)
    return model.eval()


def load_head(file: Path) -> torch.nn.Linear:
    """A head that ``make_expert`` left."""
    tensors = load_file(file)
    count, width = tensors["weight"].shape
    head = torch.nn.Linear(width, count)
    head.load_state_dict(tensors)
    return head


def mean_states(model: Any, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Mean over tokens of the last hidden states, as the gate pools them; a row per text."""
    read = tokenizer(
        list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
    )
    hidden = model.base_model(**read).last_hidden_state
    return pool(hidden.float(), read["attention_mask"], "mean")


def accuracy(model: Any, tokenizer: Any, head: torch.nn.Linear, rows: Rows) -> float:
    """The share of rows to whose answer the head gives the highest value."""
    order = sorted(range(len(rows.texts)), key=lambda i: len(rows.texts[i]))
    right = 0
    with torch.inference_mode():
        for start in range(0, len(order), 32):
            some = order[start : start + 32]
            values = head(mean_states(model, tokenizer, [rows.texts[i] for i in some]))
            right += int((values.argmax(1) == torch.tensor([rows.labels[i] for i in some])).sum())
    return right / len(order)


def train(expert: Expert, model: Any, tokenizer: Any, head: torch.nn.Linear, rows: Rows) -> float:
    """Fine-tune all of the encoder, and the head unless it is another's.

    Returns:
        Mean cross-entropy of the last eight steps, in nats.
    """
    torch.manual_seed(expert.seed)
    rng = random.Random(expert.seed)
    encoder = list(model.base_model.parameters())
    groups = [{"params": encoder, "lr": expert.rate}]
    if expert.head_of is None:
        groups.append({"params": list(head.parameters()), "lr": HEAD_RATE})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    peaks = [group["lr"] for group in optimizer.param_groups]
    model.train()
    order: list[int] = []
    losses: list[float] = []
    for step in range(expert.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * min(1.0, (step + 1) / WARM_UP) * (1 - step / expert.steps)
        if len(order) < expert.batch:
            order = rng.sample(range(len(rows.texts)), len(rows.texts))
        some = [order.pop() for _ in range(expert.batch)]
        with torch.autocast("cpu", torch.bfloat16):
            states = mean_states(model, tokenizer, [rows.texts[i] for i in some])
        target = torch.tensor([rows.labels[i] for i in some])
        loss: Any = torch.nn.functional.cross_entropy(head(states), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder, 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return sum(losses[-8:]) / len(losses[-8:])


def make_expert(name: str, folder: Path, base: Path) -> None:
    """Leave an expert at encoder/experts/NAME, its head and its record beside in encoder/heads.

    The record is written last: an expert that has one is finished. Its seconds, as all in the
    encoder's tables, are the processor's.

    Raises:
        SystemExit: the finished one was trained otherwise.
    """
    expert, heads = EXPERTS[name], folder / "encoder" / "heads"
    record = heads / f"{name}.json"
    if record.exists():
        kept = json.loads(record.read_text("utf-8"))
        if not asdict(expert).items() <= kept.items():
            raise SystemExit(f"{record} is of another {name}: delete {folder / 'encoder'}")
        return
    heads.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    rows, held_out = (read_rows(folder, expert, part) for part in ("train", "held_out"))
    model, tokenizer = load_encoder(base, torch.float32), AutoTokenizer.from_pretrained(base)
    before = [p.detach().clone() for p in model.base_model.parameters()]
    width = len(choices(folder, expert.task))
    torch.manual_seed(expert.seed)
    head = torch.nn.Linear(model.config.hidden_size, width)
    if expert.head_of is not None:
        head = load_head(heads / f"{expert.head_of}.safetensors")
    loss = train(expert, model, tokenizer, head, rows)
    moved = zip(model.base_model.parameters(), before, strict=True)
    norm = sum(float((now.detach() - then).square().sum()) for now, then in moved) ** 0.5
    place = folder / "encoder" / "experts" / name
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    save_file(
        {key: value.contiguous() for key, value in head.state_dict().items()},
        heads / f"{name}.safetensors",
    )
    own, of_base = (
        accuracy(load_encoder(one, torch.bfloat16), tokenizer, head, held_out)
        for one in (place, base)
    )
    seconds = time.process_time() - start
    found = {**asdict(expert), "own": own, "base": of_base, "norm": norm, "loss": loss}
    rough = heads / f".{name}-{os.getpid()}"
    rough.write_text(json.dumps({**found, "seconds": seconds}), encoding="utf-8")
    rough.rename(record)
    print(f"{name}: own {own:.2f}, base {of_base:.2f}, {seconds:.0f} s", flush=True)
