"""Asks ``transformers`` about an architecture, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from dcptools.expected.counts import too_many
from dcptools.expected.values import Expected, NotExpected

KEPT = 16  # answers; the oldest goes first
TIMEOUT = 300  # seconds, for a machine that is busy, or reads its libraries from far away; building has its own bound
# No network, no GPU, and nothing printed but the answer.
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "critical",
    "CUDA_VISIBLE_DEVICES": "",
    "TQDM_DISABLE": "1",
}

_answers: dict[str, Expected | NotExpected] = {}  # by the text of config.json
_asking = threading.Lock()


def expect(config: str) -> Expected:
    """What the model of a ``config.json`` expects; ``config`` is its text.

    transformers takes a few seconds to build it; the answer is kept for the next time, and threads that ask for the
    same model get the same answer.

    Raises
    ------
    NotExpected
        transformers is missing, does not know the architecture, needs remote code for it, or cannot build it.
    """
    if refusal := _refusal(config):
        raise refusal
    with _asking:
        if config not in _answers:
            _answers[config] = _built(config)
            if len(_answers) > KEPT:
                del _answers[next(iter(_answers))]
        answer = _answers[config]
    if isinstance(answer, NotExpected):
        raise NotExpected(str(answer), broken=answer.broken)
    return answer


def is_answered(config: str) -> bool:
    """Whether :func:`expect` answers at once, without building a model."""
    return config in _answers or _refusal(config) is not None


def _refusal(config: str) -> NotExpected | None:
    """What is known without building it: that nothing will be known."""
    try:
        said = json.loads(config)
        named = said.get("architectures")
        if not named:
            return NotExpected("config.json names no architecture")
        if not isinstance(named, list) or not isinstance(named[0], str):
            return NotExpected("its architectures are not a list of names", broken=True)
    except (ValueError, RecursionError, AttributeError):
        return NotExpected("config.json is not a JSON object", broken=True)
    if is_known(said.get("model_type")) is False:
        without = " without the code that comes with it" if "auto_map" in said else ""
        return NotExpected(
            f"the installed transformers does not know the model_type {said.get('model_type')!r:.200}{without}"
        )
    if found := too_many(said):
        return NotExpected(found, broken=True)
    return None


def _built(config: str) -> Expected | NotExpected:
    """The answer of a process that builds the model; raises NotExpected if another try may give another answer."""
    # -P: no module of the current directory is imported in place of an installed one
    command = [sys.executable, "-P", "-m", "dcptools.expected.building"]
    found_at = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (found_at, os.environ.get("PYTHONPATH"))))
    done = None
    try:
        done = subprocess.run(
            command,
            input=config.encode(),
            capture_output=True,
            timeout=TIMEOUT,
            env={**os.environ, **_SETTINGS, "PYTHONPATH": paths},
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return NotExpected(f"building the model took more than {TIMEOUT} seconds", broken=True)
    except (OSError, ValueError) as error:
        raise NotExpected(f"no process could build the model: {_last_line(error, done)}") from None
    if "architecture" not in answer:
        return NotExpected(answer.get("unknown") or answer["broken"], broken="broken" in answer)
    return Expected.from_json(answer)


def is_known(model_type: object) -> bool | None:
    """Whether the installed transformers has that model_type, without importing it; None if it is not installed.

    The names are quoted strings in ``transformers/models/auto``.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return None
    tables = sorted(Path(next(iter(spec.submodule_search_locations)), "models", "auto").glob("*.py"))
    wanted = (f'"{model_type}"', f"'{model_type}'")
    texts = (table.read_text(encoding="utf-8", errors="replace") for table in tables)
    return any(quoted in text for text in texts for quoted in wanted) if tables else None


def _last_line(error: Exception, done: subprocess.CompletedProcess[bytes] | None) -> str:
    said = done.stderr.decode(errors="replace").strip().splitlines() if done else []
    return said[-1] if said else str(error)
