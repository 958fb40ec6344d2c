"""A model on the Hugging Face hub, of which only small files and headers are fetched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)

# They are exported, but in a way that mypy does not see.
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)
from mergekit.common import ModelPath

from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.foreign_errors import first_line
from mergekit_collapse.preflight.tensor_headers import (
    TensorHeader,
    header_length,
    parse_header,
    read_header,
)

# Configurations, indices and tokenizers are far smaller; more is not read into memory.
MAX_TEXT_BYTES = 100_000_000


@dataclass(frozen=True)
class HubRepository:
    """A repository at one commit: its files and, where the hub says them, their sizes."""

    repository: str
    commit: str
    sizes: dict[str, int | None]
    cache_dir: str | None

    @property
    def where(self) -> str:
        return f"{self.repository} (hub)"

    def files(self) -> frozenset[str]:
        return frozenset(name for name in self.sizes if "/" not in name)

    def text(self, name: str) -> bytes:
        if (self.sizes.get(name) or 0) > MAX_TEXT_BYTES:
            raise EvaluationError(
                f"{self.where}: {name} is {self.sizes[name]:,} bytes, which no such file needs; "
                "check it"
            )
        try:
            path = hf_hub_download(
                self.repository, name, revision=self.commit, cache_dir=self.cache_dir
            )
            return Path(path).read_bytes()
        # The hub client's transport, and so its errors, differ between its versions.
        except Exception as problem:
            raise unreachable(f"{self.where}: {name}", problem) from problem

    def header(self, name: str) -> TensorHeader:
        cached = try_to_load_from_cache(
            self.repository, name, cache_dir=self.cache_dir, revision=self.commit
        )
        if isinstance(cached, str):
            return read_header(Path(cached))
        where, size = f"{self.where}: {name}", self.sizes.get(name)
        if size is None:
            raise EvaluationError(f"{where}: the hub gives no size for it; download the model")
        length = header_length(self._range(name, 0, min(size, 8)), size, where)
        return parse_header(self._range(name, 8, length), size, where)

    def has(self, name: str) -> bool:
        return name in self.sizes

    def complete_archive(self, name: str) -> bool:
        return True  # uploads are checked by the hub

    def _range(self, name: str, start: int, count: int) -> bytes:
        if count <= 0:
            return b""
        # Identity: a compressed answer would be of other bytes than those asked for.
        headers = build_hf_headers() | {
            "Range": f"bytes={start}-{start + count - 1}",
            "Accept-Encoding": "identity",
        }
        try:
            url = hf_hub_url(self.repository, name, revision=self.commit)
            answer: Any = get_session().get(url, headers=headers, timeout=30)
            hf_raise_for_status(answer)
            content: bytes = answer.content
        except Exception as problem:
            raise unreachable(f"{self.where}: {name}", problem) from problem
        return content[:count] if answer.status_code == 206 else content[start : start + count]


def find_on_hub(model: ModelPath, cache_dir: str | None) -> HubRepository | Path:
    """The repository as the hub has it now or, with no hub in reach, its cached snapshot.

    Raises:
        EvaluationError: neither; says which, and what to do.
    """
    try:
        info = HfApi().model_info(
            model.path, revision=model.revision, files_metadata=True, timeout=30
        )
    # The hub client's transport, and so its errors, differ between its versions.
    except Exception as problem:
        cached = cached_snapshot(model, cache_dir)
        if cached is not None:
            return cached
        raise unreachable(str(model), problem) from problem
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    return HubRepository(model.path, info.sha or model.revision or "main", sizes, cache_dir)


def cached_snapshot(model: ModelPath, cache_dir: str | None) -> Path | None:
    """The folder that the client would take without asking the hub; None where there is none."""
    try:
        return Path(
            snapshot_download(
                model.path, revision=model.revision, cache_dir=cache_dir, local_files_only=True
            )
        )
    except Exception:  # not cached, in any of the ways that the client words it
        return None


def unreachable(what: str, problem: Exception) -> EvaluationError:
    """What the hub client raised, as the error to raise from it: what is wrong, and what to do."""
    kind = type(problem).__name__
    if kind in ("RepositoryNotFoundError", "HFValidationError"):
        return EvaluationError(
            f"{what}: is neither a folder here nor a public model on the hub; correct the "
            "spelling, or log in with `hf auth login` if it is private"
        )
    if kind == "GatedRepoError":
        return EvaluationError(
            f"{what}: is gated; accept its terms on the hub and log in with `hf auth login`"
        )
    if kind == "RevisionNotFoundError":
        return EvaluationError(f"{what}: has no such revision on the hub; correct what follows @")
    return EvaluationError(
        f"{what}: is not a folder here, and the hub cannot be reached "
        f"({kind}: {first_line(problem)}); "
        "go online, or download the model and name its folder"
    )
