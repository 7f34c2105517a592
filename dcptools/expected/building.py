"""The architecture of a ``config.json``, built by ``transformers`` on the meta device: names and shapes, no weights.

Run as a process of its own, ``python -m dcptools.expected.building``: the config comes on stdin as JSON, the answer
goes to stdout as JSON. So neither the memory that the libraries take nor what a strange config makes them do affects
whoever asks. No remote code is run and nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from dcptools.expected.architecture import Unknown, architecture_of, with_numbers
from dcptools.expected.tracing import Traced
from dcptools.tensors import Composed, NotViews

# What building may take beside its libraries. Of the known models, the one with 61 layers of 384 experts takes
# most: 6 seconds of processor time and 250 MB.
SECONDS, MAX_BYTES = 30, 640 << 20


class _TooLong(BaseException):  # code that catches any Exception must not go on
    pass


def main() -> None:
    """Answer one question."""
    json.dump(answer(json.load(sys.stdin)), sys.stdout)


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """What is asked about the model of a config, or why it is not known; limits this process."""
    try:
        _bound()
        return describe(build(config))
    except (Exception, _TooLong) as error:
        _unbound()  # otherwise there may be no memory to say it
        return _why(error)


def _why(error: BaseException) -> dict[str, Any]:
    if isinstance(error, Unknown):
        return {"unknown": str(error)}
    if isinstance(error, _TooLong):
        return {"broken": f"building it takes more than {SECONDS} seconds"}
    if _is_for_memory(error):
        return {"broken": f"building it takes more than {MAX_BYTES >> 20} MB of memory"}
    # whatever a model's own code raises for sizes that make no sense
    return {"broken": " ".join(f"{type(error).__name__}: {error}".split())[:500]}


def _is_for_memory(error: BaseException) -> bool:
    """Whether it, or what led to it, is a lack of memory; a Python without memory also raises SystemError."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:  # an error may be its own cause
        if isinstance(cause, MemoryError | SystemError) or getattr(cause, "errno", None) == errno.ENOMEM:
            return True
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return False


def _bound() -> None:
    """A strange config must not take the whole machine."""
    try:
        import resource

        import transformers  # noqa: F401  (what the libraries take does not count)
    except ImportError:  # not POSIX; what else is missing will be reported
        return
    signal.signal(signal.SIGXCPU, _stop)
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + SECONDS)
    with contextlib.suppress(OSError):  # not Linux
        status = Path("/proc/self/status").read_text(encoding="ascii")
        taken = int(status.partition("VmData:")[2].split()[0])  # kB
        _limit(resource.RLIMIT_DATA, taken * 1024 + MAX_BYTES)


def _limit(kind: int, most: int) -> None:
    """Lower a limit of this process; one that is lower already stays."""
    import resource

    soft, hard = resource.getrlimit(kind)
    if soft == resource.RLIM_INFINITY or soft > most:
        resource.setrlimit(kind, (most, hard))


def _unbound() -> None:
    """The answer for a config takes little memory; for one that took too much, it may be more than is left."""
    with contextlib.suppress(ImportError):
        import resource

        for kind in (resource.RLIMIT_CPU, resource.RLIMIT_DATA):
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (hard, hard))


def _stop(signum: int, frame: object) -> NoReturn:
    raise _TooLong


def build(config: dict[str, Any]) -> Any:
    """The model on the meta device, with its weights tied as the config says. Raises Unknown."""
    made, configured = architecture_of(config)
    import torch

    plain = {field: value for field, value in config.items() if field not in ("quantization_config", "auto_map")}
    with torch.device("meta"):
        model = made(configured.from_dict(with_numbers(plain)))
    model.tie_weights()
    if not model.state_dict():
        raise ValueError(f"{made.__name__} has no weights: it is not a whole model")
    return model


def describe(model: Any) -> dict[str, Any]:
    """All that is asked about a model, as plain data."""
    state = model.state_dict()
    ties = list(_ties(model, state))
    unsaved = _unsaved(model, state)
    shapes = {name: list(tensor.shape) for name, tensor in state.items() if name not in unsaved}
    return {
        "architecture": type(model).__name__,
        "base": model.base_model_prefix,
        "stored": shapes,
        "published": _published(model, shapes),
        "ties": ties,
        "numbers": [name for name, tensor in state.items() if not tensor.is_floating_point()],
        "linear": _linear(model),
        "unsaved": sorted(unsaved),
        "optional": _matching(getattr(model, "_keys_to_ignore_on_load_missing", None), shapes),
        "ignored": _patterns(getattr(model, "_keys_to_ignore_on_load_unexpected", None)),
        "float32": {dtype: _kept_in_float32(model, dtype) for dtype in ("bfloat16", "float16")},
        "sizes": _sizes(model.config),
    }


def _ties(model: Any, state: dict[str, Any]) -> Iterator[list[str]]:
    """Names of one and the same weight; the one that is saved comes first."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    groups: dict[int, list[str]] = {}
    for name in state:
        groups.setdefault(id(model.get_parameter_or_buffer(name)), []).append(name)
    kept = remove_tied_weights_from_state_dict(dict(state), model)
    for names in groups.values():
        if len(names) > 1:
            yield sorted(names, key=lambda name: name not in kept)


def _published(model: Any, shapes: dict[str, list[int]]) -> dict[str, Any]:
    """What ``save_pretrained`` writes: by name, the shape and the views; the answer says why if that is unknown."""
    try:
        converted = _converted(model, shapes)
    except NotViews as error:
        return {"unknown": str(error)}
    except Exception as error:  # what an operation of theirs raises itself
        return {"unknown": f"{type(error).__name__}: {error}"}
    return {
        "weights": {
            name: [tensor.composed.shape, [[v.key, v.shape, v.strides, v.offset] for v in tensor.composed.views]]
            for name, tensor in converted.items()
        }
    }


def _converted(model: Any, shapes: dict[str, list[int]]) -> dict[str, Any]:
    """What transformers makes of the weights when it saves the model."""
    import torch

    with torch.inference_mode():  # otherwise torch would keep, for each of very many parts, what it was made of
        traced: dict[str, Any] = {name: Traced(Composed.whole(name, tuple(shape))) for name, shape in shapes.items()}
        try:
            from transformers.core_model_loading import revert_weight_conversion
        except ImportError:  # before transformers 5 the names of the live model were the published ones
            return traced
        return dict(revert_weight_conversion(model, traced))


def _linear(model: Any) -> list[str] | None:
    """The modules that peft means by all linear ones: those of its classes except the head of a language model."""
    import torch
    from transformers.pytorch_utils import Conv1D

    try:
        head = model.get_output_embeddings()
    except Exception:  # of a model's own code
        return None
    linear = (torch.nn.Linear, Conv1D)
    return [name for name, module in model.named_modules() if isinstance(module, linear) and module is not head]


def _unsaved(model: Any, state: dict[str, Any]) -> set[str]:
    """Buffers that no state dict has, and what ``save_pretrained`` leaves out."""
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)} - state.keys()
    return buffers | (set(getattr(model, "_keys_to_ignore_on_save", None) or ()) & state.keys())


def _kept_in_float32(model: Any, dtype: str) -> list[str]:
    """The weights that stay float32 when the model is loaded in a narrower dtype."""
    kinds = ("_keep_in_fp32_modules_strict", *(("_keep_in_fp32_modules",) if dtype == "float16" else ()))
    parts = [part for kind in kinds for part in getattr(model, kind, None) or ()]
    patterns = [re.compile(rf"(?:^|\.){part.replace('.*.', '.[^.]+.')}(?:$|\.)") for part in parts]
    return [name for name in model.state_dict() if any(pattern.search(name) for pattern in patterns)]


def _patterns(patterns: Iterable[str] | None) -> list[str]:
    return sorted(patterns or ())


def _matching(patterns: Iterable[str] | None, names: Iterable[str]) -> list[str]:
    """The names in which a pattern of transformers finds something."""
    regexes = [re.compile(pattern) for pattern in _patterns(patterns)]
    return [name for name in names if any(regex.search(name) for regex in regexes)]


def _sizes(config: Any) -> dict[str, int]:
    """The integers of the config, with its class's defaults; those of the text model before those around it."""
    text = config.get_text_config()
    both = {**config.to_dict(), **text.to_dict()}
    return {name: value for name, value in both.items() if isinstance(value, int) and not isinstance(value, bool)}


if __name__ == "__main__":
    main()
