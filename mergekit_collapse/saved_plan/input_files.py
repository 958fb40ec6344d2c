"""Which files a merge and its gate read: of models, adapters, tokenizers, probes and tasks."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration

from mergekit_collapse.errors import EvaluationError, InvalidRecipeError
from mergekit_collapse.evaluation.lm_eval_tasks import files_read, local_path, task_files
from mergekit_collapse.preflight.hub_repository import unreachable
from mergekit_collapse.preflight.model_source import LocalFolder, read_json, stays_inside
from mergekit_collapse.preflight.weight_files import adapter_folder, model_folder
from mergekit_collapse.probes.files import FILE_KINDS
from mergekit_collapse.recipe.recipe import Recipe
from mergekit_collapse.saved_plan.own_code import require_own_code
from mergekit_collapse.saved_plan.record import Key, Role

# In MergeKit's order of preference; what stands behind the first that is there is never read.
_WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "model": ("model.safetensors", "pytorch_model.bin"),
    "adapter": ("adapter_model.safetensors", "adapter_model.bin"),
    "tokenizer": (),
}
# Configurations, and every tokenizer's own kinds of vocabulary and template.
_SMALL = (".bpe", ".jinja", ".json", ".model", ".spm", ".tiktoken", ".txt", ".vocab")
_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class Input:
    """Something that is read, and where it is found."""

    role: Role
    name: str
    source: ModelPath | Path

    @property
    def key(self) -> Key:
        """What tells it from the others."""
        return self.role, self.name


@dataclass(frozen=True)
class Located:
    """Its files by name, and its commit where they are the hub's."""

    commit: str | None
    files: Mapping[str, Path]


def inputs_of(recipe: Recipe) -> tuple[Input, ...]:
    """All that a merge of the recipe reads, each once; whether it is there is not looked at."""
    found: list[Input] = []
    if recipe.path is not None:
        path = Path(os.path.abspath(recipe.path))
        found.append(Input("recipe", str(path), path))
    models = _models(recipe)
    found += [Input("model", str(m.model), m.model) for m in models]
    found += [Input("adapter", str(m.lora), m.lora) for m in models if m.lora is not None]
    merged = {m.model for m in models}
    found += [
        Input("tokenizer", str(path), path)
        for path in _tokenizer_sources(recipe.config)
        if path not in merged
    ]
    for task in recipe.compat.probes.tasks:
        path = recipe.folder / task.data
        # Anything else is a data set of the hub, of which the probes' own digest speaks.
        if path.suffix.lower() in FILE_KINDS:
            found.append(Input("probes", task.data, path))
    for name in recipe.compat.evaluate.lm_eval:
        if (place := _task_place(name, recipe.folder)) is not None:
            found.append(Input("lm_eval", name, place))
    return tuple({one.key: one for one in found}.values())


def locate(wanted: Input, *, cache_dir: str | None, trust_remote_code: bool) -> Located:
    """Its files as they lie here; those of the hub are fetched if need be.

    Raises:
        EvaluationError: it is not there.
        InvalidRecipeError: a task of lm-eval that cannot be read.
    """
    source = wanted.source
    if isinstance(source, ModelPath):
        return _model(wanted.role, source, cache_dir, trust_remote_code)
    if wanted.role == "lm_eval":
        files = files_read(task_files(source))
        if trust_remote_code:  # code that a task may name lies beside it
            files |= {code for file in set(files) for code in file.parent.glob("*.py")}
        return Located(None, {os.path.relpath(file, source.parent): file for file in files})
    if not source.is_file():
        raise EvaluationError(f"{source}: no such file")
    return Located(None, {source.name: source})


def _task_place(name: str, folder: Path) -> Path | None:
    try:
        return local_path(name, folder)
    except InvalidRecipeError:
        return folder / name  # where nothing is, as will be said


def _models(recipe: Recipe) -> Iterable[ModelReference]:
    """In the order of the YAML, as far as it has one: MergeKit keeps them in a set."""
    grouped = [model for group in recipe.groups for model in (*group.models, group.base)]
    others = sorted(recipe.config.referenced_models(), key=str)
    every = (*recipe.models, *grouped, *others)
    return dict.fromkeys(model for model in every if model is not None)


def _tokenizer_sources(config: MergeConfiguration) -> Iterator[ModelPath]:
    tokens = (config.tokenizer.tokens if config.tokenizer is not None else None) or {}
    named = [config.tokenizer_source, *(token.source for token in tokens.values())]
    named += [config.tokenizer.source] if config.tokenizer is not None else []
    for each in named:
        source = getattr(each, "model", None)  # a reference's path, or a token's reference
        if isinstance(source, ModelReference):
            source = source.model
        if isinstance(source, ModelPath):
            yield source


def _model(role: Role, path: ModelPath, cache_dir: str | None, trust_remote_code: bool) -> Located:
    local = os.path.isdir(path.path)
    if role == "model":
        folder = model_folder(path, cache_dir, trust_remote_code)
    elif role == "adapter":
        folder = adapter_folder(path, cache_dir)
    else:
        folder = Path(path.path) if local else _tokenizer_of_hub(path, cache_dir)
    try:
        names = set(_names(folder, _WEIGHTS[role], trust_remote_code))
    except OSError as error:
        raise EvaluationError(
            f"{folder}: cannot be read: {error.strerror}; check it and its rights"
        ) from error
    if trust_remote_code:
        require_own_code(folder, names)
    files = {name: folder / name for name in sorted(names) if (folder / name).is_file()}
    # The hub's cache has a folder for each commit.
    return Located(None if local else folder.name, files)


def _names(folder: Path, weights: tuple[str, ...], with_code: bool) -> Iterator[str]:
    yield from (p.name for p in folder.iterdir() if p.suffix.lower() in _SMALL)
    yield from (f"{_TEMPLATES}/{p.name}" for p in (folder / _TEMPLATES).glob("*.jinja"))
    if with_code:
        yield from (p.relative_to(folder).as_posix() for p in folder.rglob("*.py"))
    for single in weights:
        if (folder / f"{single}.index.json").exists():
            placed = read_json(LocalFolder(folder), f"{single}.index.json").get("weight_map")
            shards = placed.values() if isinstance(placed, dict) else ()
            yield from (shard for shard in shards if stays_inside(shard))
            return
        if (folder / single).exists():
            yield single
            return


def _tokenizer_of_hub(path: ModelPath, cache_dir: str | None) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(
                path.path,
                revision=path.revision,
                cache_dir=cache_dir,
                allow_patterns=[f"*{suffix}" for suffix in _SMALL],
            )
        )
    # The hub client's transport, and so its errors, differ between its versions.
    except Exception as error:
        raise unreachable(f"tokenizer {path}", error) from error
