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
MOMENT = re.compile(r"(max_)?exp_avg(_sq)?s?|momentum(_buffer)?s?|moments?_?[0-9]?|square_avg|grads?|gradients?|mu|nu")
COPIES = ("ema", "ema_model", "model_ema")  # averages of the weights, kept beside the model
# What the model that was trained is in, as the last segment
_USUAL = frozenset(("model", "module", "net", "network", "state", "state_dict", "model_state_dict", "policy", "actor"))
# What has the names of the model but is another one, or what an optimizer keeps of it
_OTHERS = re.compile(
    r"(.*_)?(ema|swa|averaged?|shadow|best|old|prev(ious)?|teacher|critic|ref(erence)?|reward|value|target|draft)"
    r"(_(model|module|net(work)?|policy|weights|params|state)s?)?"
)
_OPTIMIZER = re.compile(r"(.*_)?optim(izer)?s?(_.*)?")


def is_usual(root: str) -> bool:
    """Whether a model in this container is the one that was trained, as far as its names tell.

    >>> is_usual("train_state.model"), is_usual("teacher.model")
    (True, False)
    """
    *around, last = root.split(".")
    return not root or (last in _USUAL and not any(map(_OTHERS.fullmatch, around)))


def is_of_optimizer(container: str) -> bool:
    """Whether a segment says that it holds an optimizer's state, or one of its moments."""
    return bool(_OPTIMIZER.fullmatch(container) or MOMENT.fullmatch(container))


def is_training_state(key: Key, beside: str = "") -> bool:
    """Whether a key that is not the model's is training state, by the names of its containers.

    Containers that hold the model as well say nothing. If ``planner_data`` gives none, only the part that the key is
    in, ``beside`` the model's, counts.
    """
    around = beside.count(".")
    containers = key.path[around:-1] or (beside.rpartition(".")[2] or key.first,)
    return any(TRAINING_STATE.fullmatch(container) for container in containers)


def is_extra_state(stored: str) -> bool:
    """TransformerEngine and others keep a module's extra state as a tensor; it is not a weight."""
    return "_extra_state" in stored and "_extra_state" in stored.split(".")


def extra_state(tensor: StoredTensor) -> Leftover:
    """A module's extra state, which is among the weights."""
    return Leftover.of(tensor, "extra state of a module, not a weight")


def beside_model(tensor: StoredTensor, reason: str, part: str, *, training: bool) -> Leftover:
    """What is not the model's. Where nobody would expect a weight, its ``part`` of the state dict is not given."""
    expected = training or _is_counter(tensor, part) or is_extra_state(tensor.key)
    return Leftover.of(tensor, reason, "" if expected else part)


def _is_counter(tensor: StoredTensor, part: str) -> bool:
    """One integer beside the model, such as the number of tokens seen or epochs run."""
    return not tensor.shape and tensor.dtype.kind == "int" and tensor.key in (part, tensor.key.rpartition(".")[2])
