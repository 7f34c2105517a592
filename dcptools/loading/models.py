"""``load_model``: the model of ``config.json`` with the values of a checkpoint, as transformers would load it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dcptools._parallel import Progress
from dcptools._text import counted, some
from dcptools.assets import on_disk
from dcptools.checkpoint import Checkpoint
from dcptools.errors import DcptoolsError, UsageError
from dcptools.expected import Unknown, architecture_of, with_numbers
from dcptools.loading.memory import check_fits, not_enough
from dcptools.loading.states import chosen, load
from dcptools.mapping import KeyMapping, preview
from dcptools.shards import PlannedTensor, ShardPlan, plan

if TYPE_CHECKING:
    import torch

GENERATION_CONFIG = "generation_config.json"


def load_model(
    mapping: KeyMapping | Checkpoint | str | os.PathLike[str],
    *,
    model_assets_dir: str | os.PathLike[str] | None = None,
    keys: Sequence[str] | str | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "bfloat16",
    dtype_for: Mapping[str, str | torch.dtype] | Iterable[str | tuple[str, str | torch.dtype]] = (),
    workers: int | None = None,
    progress: Progress | bool | None = None,
    cancel: threading.Event | None = None,
) -> Any:
    """The transformers model of ``config.json`` with the values of a checkpoint. Nothing is written.

    It is the model that ``from_pretrained(save_dir, dtype="auto")`` gives once it is written: transformers itself ties
    weights, makes buffers, and keeps in float32 what it always keeps in float32. No remote code is run.

    Parameters
    ----------
    mapping
        What :func:`dcptools.preview` returned, with its assets; or a checkpoint or a path.
    model_assets_dir
        The directory with ``config.json``, for a checkpoint or a path.
    keys
        Globs on names: only these weights are loaded and take memory. All others are on the device ``meta``, so that
        using one is an error.
    device
        Where the loaded weights go.
    dtype, dtype_for
        As in :func:`dcptools.plan`.
    workers, progress, cancel
        As in :func:`dcptools.load_state_dict`.

    Raises
    ------
    NotEnoughMemory
        It does not fit into memory, or into the device's; nothing was read.
    UsageError
        There is no ``config.json``, transformers does not know its architecture, weights are missing, or an
        option cannot be used.
    FindingsError, BrokenCheckpoint, ChecksumError, UnsupportedCheckpoint, Cancelled
        As in :func:`dcptools.load_state_dict`.

    Examples
    --------
    >>> model = load_model(demo.checkpoint, model_assets_dir=demo.assets)
    >>> type(model).__name__, model.dtype
    ('Qwen3ForCausalLM', torch.bfloat16)
    """
    planned = plan(_with_assets(mapping, model_assets_dir), dtype=dtype, dtype_for=dtype_for)
    made, config = _architecture(planned)
    target = _device(device)
    tensors = chosen(planned, keys)
    check_fits(memory_needed(planned, tensors))
    _check_device(target, sum(tensor.nbytes for tensor in tensors))
    state = load(planned, tensors, workers, progress, cancel)
    others = [tensor for tensor in chosen(planned, None) if tensor.output.name not in state]
    model = _made(made, config, state | {tensor.output.name: _placeholder(tensor) for tensor in others}, planned)
    if others:
        _forget_placeholders(model)
    if target.type != "cpu":  # except for what is on no device
        model._apply(lambda value: value if value.is_meta else value.to(target))
    return model


def memory_needed(planned: ShardPlan, tensors: Sequence[PlannedTensor] | None = None) -> int:
    """Bytes that the weights of the model take; those that transformers joins or cuts first count twice."""
    expected = planned.mapping.expected
    own = expected.stored.shapes if expected else {}
    given = chosen(planned, None) if tensors is None else tensors
    return sum(tensor.nbytes * (1 if not own or tensor.output.name in own else 2) for tensor in given)


def open_tokenizer(directory: str | os.PathLike[str]) -> Any:
    """The tokenizer of a directory; raises UsageError if transformers finds none there."""
    from transformers import AutoTokenizer

    try:
        with on_disk(directory) as path:
            return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except DcptoolsError:
        raise
    except Exception as error:  # whatever a tokenizer's own code raises for files that make no sense
        raise UsageError(f"transformers cannot open the tokenizer of {directory}: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """What an error of another library says, without its advice."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _with_assets(
    mapping: KeyMapping | Checkpoint | str | os.PathLike[str], model_assets_dir: str | os.PathLike[str] | None
) -> KeyMapping:
    if not isinstance(mapping, KeyMapping):
        return preview(mapping, model_assets_dir=model_assets_dir)
    if model_assets_dir is not None:
        raise UsageError("The mapping has assets of its own.\nGive model_assets_dir to preview, or load_model a path.")
    return mapping


def _architecture(planned: ShardPlan) -> tuple[Any, Any]:
    """The class of the model, and its config with the dtype that would be written."""
    if planned.kind == "adapter":
        raise UsageError(
            "This is an adapter, not a model.\nPreview its base model with mode='full', or use load_state_dict."
        )
    text = planned.assets.config_for(planned.written_dtype) if planned.assets else None
    if text is None:
        raise UsageError("No config.json names a model.\nGive the directory of config.json: model_assets_dir.")
    config = json.loads(text)
    try:
        made, configured = architecture_of(config)
        return made, configured.from_dict(with_numbers(config))
    except Unknown as error:
        raise UsageError(f"The model of config.json cannot be made: {error}.") from None
    except Exception as error:  # whatever a config's own code raises for fields that make no sense
        raise UsageError(f"The model of config.json cannot be made: {first_line(error)}.") from None


def _device(device: str | torch.device) -> torch.device:
    import torch

    try:
        return torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"{device!r} is not a device: {first_line(error)}.") from None


def _check_device(device: torch.device, needed: int) -> None:
    """Raises NotEnoughMemory, if a device says how much it has, and UsageError if there is no such device."""
    if device.type != "cuda":
        return
    import torch

    try:
        available, _ = torch.cuda.mem_get_info(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"The device {str(device)!r} cannot be used: {first_line(error)}.") from None
    if needed > available:
        raise not_enough(needed, available, f"on {device}")


def _made(made: Any, config: Any, state: dict[str, torch.Tensor], planned: ShardPlan) -> Any:
    """The model with these values, as ``from_pretrained`` makes it."""
    more: dict[str, Any] = {"config": config, "state_dict": state, "dtype": "auto", "output_loading_info": True}
    if planned.assets and GENERATION_CONFIG in {file.name for file in planned.assets.files}:
        from transformers import GenerationConfig

        with on_disk(planned.assets.directory) as path:
            more["generation_config"] = GenerationConfig.from_pretrained(path)
    try:
        with without_bars():
            model, found = made.from_pretrained(None, **more)
    except Exception as error:  # whatever a model's own code raises for sizes that make no sense
        raise UsageError(f"transformers cannot load these weights: {first_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise UsageError(
            f"{counted(len(missing), 'weight')} of the model would be random, because nothing is written under "
            f"their names: {some(missing)}.\nPreview the whole model, or use load_state_dict."
        )
    return model


@contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' own progress bar, which would get between whatever is shown here."""
    from transformers.utils import logging as theirs

    logging: Any = theirs  # has no annotations
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _placeholder(tensor: PlannedTensor) -> torch.Tensor:
    """A tensor of that shape and dtype that takes no memory, for one that is not loaded."""
    import torch

    dtype: torch.dtype = getattr(torch, tensor.dtype.name)
    return torch.zeros((), dtype=dtype).expand(tensor.output.shape)


def _forget_placeholders(model: Any) -> None:
    """Put on the device ``meta`` what was not loaded."""
    import torch

    meta: dict[int, torch.nn.Parameter] = {}  # by the parameter that it replaces: tied ones stay tied
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter.numel() and parameter.untyped_storage().nbytes() < parameter.numel() * parameter.itemsize:
                empty = torch.nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
                setattr(module, name, meta.setdefault(id(parameter), empty))
