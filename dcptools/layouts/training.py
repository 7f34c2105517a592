"""What trainers save beside the model: optimizers, what else has state, counters; and copies of the weights."""

from __future__ import annotations

import re

from dcptools.checkpoint import StoredTensor
from dcptools.layouts.keys import Key
from dcptools.layouts.values import Leftover

# What trainers save beside the model, as a segment: optimizers, what else has state, counters
TRAINING_STATE = re.compile(
    r"(optim|optimizer|(lr_|opt_param_)?scheduler|((train|val|eval|ft)_)?data_?loader|sampler|((grad|loss)_)?scaler"
    r"|((cpu|cuda|torch|numpy|python|device)_)?rng|callback|loop|(global_)?step|iteration|epoch"
    r"|(train|trainer|training|extra|client)_state)(_states?)?(_dict)?s?(_?[0-9]+)?"
)
MOMENT = re.compile(r"(max_)?exp_avg(_sq)?s?|momentum(_buffer)?s?|moments?_?[0-9]?|square_avg|grads?|gradients?")
COPIES = ("ema", "ema_model", "model_ema")  # averages of the weights, kept beside the model


def is_training_state(key: Key, beside: str = "") -> bool:
    """Whether a key that is not the model's is training state, by the names of its containers.

    Where ``planner_data`` does not tell them, only the part that it stands in, ``beside`` the model's, counts.
    """
    containers = key.path[:-1] or (beside.rpartition(".")[2] or key.first,)
    return any(TRAINING_STATE.fullmatch(container) for container in containers)


def is_extra_state(stored: str) -> bool:
    """TransformerEngine and others keep a module's extra state as a tensor; it is no weight."""
    return "_extra_state" in stored and "_extra_state" in stored.split(".")


def extra_state(tensor: StoredTensor) -> Leftover:
    """A module's extra state, which stands among the weights."""
    return Leftover.of(tensor, "extra state of a module, not a weight")


def beside_model(tensor: StoredTensor, reason: str, part: str, *, training: bool) -> Leftover:
    """What is not the model's. Where nobody would expect a weight, its ``part`` of the state dict is not told."""
    expected = training or _is_counter(tensor) or is_extra_state(tensor.key)
    return Leftover.of(tensor, reason, "" if expected else part)


def _is_counter(tensor: StoredTensor) -> bool:
    """One integer at the top of the state dict: so many tokens seen, so many epochs run."""
    return not tensor.shape and tensor.dtype.kind == "int" and "." not in tensor.key
