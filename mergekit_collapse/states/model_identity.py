"""Which model it is that gave a number, told without reading its weights."""

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import peft
import torch
import transformers
from mergekit.common import ModelReference

import mergekit_collapse
from mergekit_collapse.errors import EvaluationError
from mergekit_collapse.preflight.model_source import LocalFolder, read_json, stays_inside
from mergekit_collapse.preflight.tensor_headers import header_length
from mergekit_collapse.preflight.weight_files import adapter_folder, model_folder
from mergekit_collapse.states.loader import LoadOptions

_WEIGHTS = (".safetensors", ".bin")
_INDEX = ".index.json"
_CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
# Read of each weight file besides its header, at even distances.
_SAMPLES, _SAMPLE_BYTES = 16, 4096
_CHUNK = 2**20
_SECOND = 10**9


def model_identity(
    reference: ModelReference, options: LoadOptions, *, full: bool = False
) -> str | None:
    """Digest of all files that a model, with its adapter, is made of.

    Of a weight file that is its header, size, time and 64 KiB of its data, since the whole would
    take as long to read as to run; a moved or copied folder is the same model as long as its
    times are kept. A time of whole seconds was set by an archive or a build, perhaps for many
    models alike, and then the place on the disk counts as well. Of configurations it is the
    content, as it is of code that the model is trusted to bring.

    Args:
        full: the content of weight files as well, and neither times nor places.

    Returns:
        None where the model takes code from another repository, which can change without a trace.

    Raises:
        EvaluationError: the files are not there.
    """
    folders = [model_folder(reference.model, options.cache_dir, options.trust_remote_code)]
    if reference.lora is not None:
        folders.append(adapter_folder(reference.lora, options.cache_dir))
    try:
        if options.trust_remote_code and any(map(_has_foreign_code, folders)):
            return None
        files = [list(_told(f, full, options.trust_remote_code)) for f in folders]
    except OSError as error:
        raise EvaluationError(
            f"model {reference}: a file cannot be read: {error}; check it and its rights"
        ) from error
    return digest(files, reference.override_architecture, options.trust_remote_code)


def conditions(options: LoadOptions) -> tuple[object, ...]:
    """What numbers depend on besides the model and what it is asked: precision, device, code."""
    return (
        str(options.dtype),
        *_device(options.device),
        torch.get_float32_matmul_precision(),
        torch.__version__,
        transformers.__version__,
        peft.__version__,
        mergekit_collapse.__version__,
        own_code(),
    )


def digest(*told: object) -> str:
    """SHA-256 of plain values, in hexadecimal."""
    return hashlib.sha256(repr(told).encode()).hexdigest()


@functools.cache
def own_code() -> str:
    """Digest of the modules that run models, so that a changed one finds nothing of before."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return digest([(path.name, path.read_bytes()) for path in sources])


def _device(device: str) -> tuple[object, ...]:
    """Processors of one name and as many threads round alike."""
    kind = torch.device(device).type
    if kind == "cpu":
        return kind, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    if kind == "cuda" and torch.cuda.is_available():
        return kind, torch.cuda.get_device_name(device), torch.version.cuda
    return (kind,)


def _has_foreign_code(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    return "--" in json.dumps(read_json(LocalFolder(folder), "config.json").get("auto_map"))


def _told(folder: Path, full: bool, with_code: bool) -> Iterator[tuple[object, ...]]:
    code = set(folder.rglob("*.py")) if with_code else set()
    for path in sorted(_files(folder) | code):
        name = str(path.relative_to(folder))
        if path.suffix in _WEIGHTS:
            yield name, *(_content(path) if full else _outside(path))
        elif path.name in _CONFIGS or path.name.endswith(_INDEX) or path in code:
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()


def _files(folder: Path) -> set[Path]:
    """Those at the top, and the shards of an index, which may lie in folders below."""
    found = {path for path in folder.iterdir() if path.is_file()}
    for index in folder.glob(f"*{_INDEX}"):
        placed = read_json(LocalFolder(folder), index.name).get("weight_map")
        names = placed.values() if isinstance(placed, dict) else ()
        found |= {folder / n for n in names if stays_inside(n) and (folder / n).is_file()}
    return found


def _outside(path: Path) -> tuple[object, ...]:
    status = path.stat()
    size, time = status.st_size, status.st_mtime_ns
    place = (status.st_ino, status.st_ctime_ns) if time % _SECOND == 0 else ()
    seen = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        if path.suffix == ".safetensors":
            seen.update(file.read(header_length(file.read(8), size, str(path))))
        for part in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * part // (_SAMPLES - 1))
            seen.update(file.read(_SAMPLE_BYTES))
    return size, time, place, seen.hexdigest()


def _content(path: Path) -> tuple[object, ...]:
    status = path.stat()
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return status.st_size, _content_digest(str(path.resolve()), stamp)


@functools.lru_cache(maxsize=4096)
def _content_digest(path: str, _stamp: tuple[int, ...]) -> str:
    """Of a file that was not touched meanwhile, read once by a process."""
    seen = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            seen.update(chunk)
    return seen.hexdigest()
