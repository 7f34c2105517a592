"""Whether a model makes sense: how it continues a prompt, and how well it predicts a text."""

from __future__ import annotations

import math
import os
import threading
from typing import TYPE_CHECKING, Any

from dcptools.errors import Cancelled, UsageError
from dcptools.loading.memory import check_fits
from dcptools.loading.models import first_line, without_bars
from dcptools.storage import path_on_disk

if TYPE_CHECKING:
    import torch


def load_reference(directory: str | os.PathLike[str]) -> Any:
    """Another HuggingFace model, to see what it generates.

    Raises
    ------
    NotEnoughMemory
        Its weights do not fit.
    UsageError
        transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    path = path_on_disk(directory, "The other model")
    check_fits(sum(file.stat().st_size for file in path.glob("*.safetensors")))
    try:
        with without_bars():
            return AutoModelForCausalLM.from_pretrained(
                path, dtype="auto", local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever a model's own code raises
        raise UsageError(f"transformers cannot load the model of {directory}: {first_line(error)}") from None


def continuation(model: Any, tokenizer: Any, prompt: str, most: int = 40, cancel: threading.Event | None = None) -> str:
    """How the model continues the prompt: at most that many tokens, each the most likely one.

    Raises
    ------
    UsageError
        The model does not generate text, or the prompt has no tokens.
    Cancelled
        The event was set.
    """
    ids = _tokens(tokenizer, prompt)
    if not model.can_generate():
        raise UsageError(f"{type(model).__name__} does not generate text.")
    try:
        made = model.generate(
            input_ids=ids.to(model.device), attention_mask=(ids == ids).to(model.device),
            max_new_tokens=most, do_sample=False, stopping_criteria=[_stop(cancel)],
        )  # fmt: skip
    except Cancelled:
        raise
    except Exception as error:  # an embedding that lacks a token, a part that was not loaded
        raise UsageError(f"The model cannot continue this text: {first_line(error)}") from error
    start = 0 if model.config.is_encoder_decoder else ids.shape[1]
    said: str = tokenizer.decode(made[0, start:], skip_special_tokens=True)
    return said


def loss(model: Any, tokenizer: Any, text: str) -> float:
    """The mean cross entropy of the text's tokens after the first one, in nats; ``exp`` of it is the perplexity.

    Raises
    ------
    UsageError
        The text has fewer than two tokens, or the model gives no loss for it.
    """
    import torch

    ids = _tokens(tokenizer, text)
    if ids.shape[1] < 2:
        raise UsageError("The text has one token.\nA loss needs two or more.")
    ids = ids.to(model.device)
    try:
        with torch.no_grad():
            found = float(model(input_ids=ids, labels=ids).loss)
    except Exception as error:  # a text longer than the model's positions, a part that was not loaded
        raise UsageError(f"The model gives no loss for this text: {first_line(error)}") from error
    return found if math.isfinite(found) else math.nan


def _tokens(tokenizer: Any, text: str) -> torch.Tensor:
    """Of shape (1, tokens)."""
    ids: torch.Tensor = tokenizer(text, return_tensors="pt")["input_ids"]
    if not ids.numel():
        raise UsageError("The text has no tokens.\nType some words.")
    return ids.long()


def _stop(cancel: threading.Event | None) -> Any:
    """A criterion for ``generate`` that raises when the event is set."""
    from transformers import StoppingCriteria

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            import torch

            if cancel is not None and cancel.is_set():
                raise Cancelled("Cancelled.")
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    return Stop()
