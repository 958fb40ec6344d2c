"""What torch, transformers, PEFT and the Hub raise, said in this package's own words."""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mergekit_collapse.errors import CompatError, EvaluationError, OutOfMemoryError

# torch's CPU allocator raises a plain RuntimeError; these are the words it uses.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
_COLOUR = re.compile("\x1b\\[[0-9;]*m")


@contextmanager
def told_as_evaluation_error(where: str, mend: str) -> Iterator[None]:
    """Turn whatever foreign code raises inside into an EvaluationError.

    Args:
        where: what was being done to which model, the beginning of the message.
        mend: what to do about anything but a lack of memory.

    Raises:
        OutOfMemoryError: memory ran out.
        EvaluationError: ``<where>: <what was raised>; <mend>``.
    """
    try:
        yield
    except CompatError:
        raise
    except Exception as error:
        # Any class at all: other people's files meet other people's code here, and a
        # model that cannot be measured must end as a reason, never as an "allow".
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"{where}: out of memory; lower probes.samples and probes.max_tokens in the"
                " compat block, close other programs, or use a device with more memory"
            ) from error
        if _is_refused_pickle(error):
            # torch's own words advise to unpickle it all the same.
            raise EvaluationError(
                f"{where}: a .bin file is damaged or holds more than tensors, so that reading it"
                " could run code, and it was not read; use safetensors, or a file saved anew"
                " from a model that you trust"
            ) from error
        raise EvaluationError(f"{where}: {first_line(error)}; {mend}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error) for s in _OUT_OF_MEMORY)


def _is_refused_pickle(error: BaseException) -> bool:
    return isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error)


def first_line(error: BaseException) -> str:
    """The beginning of a message, at most 300 characters, or the class where it is empty."""
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # "Error(s) in loading state_dict for X:" says nothing without the line after it.
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return text[:300].rstrip(" .;")
