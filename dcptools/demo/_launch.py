"""Start the training processes and wait for them; what they say is shown only when they fail."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dcptools.errors import DcptoolsError

TRAIN = Path(__file__).with_name("_train.py")
NEEDED = ("torch", "transformers", "tokenizers", "safetensors")
TIMEOUT = 600.0  # seconds; a quiet machine needs about 15
TAIL = 15  # lines of each process that an error shows


def train(directory: Path, logs: Path, *, processes: int, steps: int) -> None:
    """Run ``_train.py`` in ``processes`` processes, which write into ``directory``.

    ``torch.distributed.run`` is what ``torchrun`` runs. As a child process it works from a notebook as well,
    where nothing can be forked or spawned from the kernel itself.

    Raises
    ------
    DcptoolsError
        A package is missing, or a process failed; the message ends with what the processes wrote last.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DcptoolsError(
            f"The demo trains a real model, and these packages are missing: {', '.join(missing)}.\n"
            "Install them with: pip install 'dcptools[transformers]'"
        )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
    command += ["--nproc-per-node", str(processes), "--log-dir", str(logs / "ranks"), "--redirects", "3"]
    command += [str(TRAIN), str(directory), "--steps", str(steps)]
    logs.mkdir()
    status = _run(command, logs / "launcher.log")
    if status != 0:
        said = "\n".join(_tails(logs))
        raise DcptoolsError(f"Making the demo failed (torchrun exit status {status}). Its processes said:\n{said}")


def _run(command: list[str], log: Path) -> int:
    """Run ``command`` with its output in ``log``; however this ends, the command and its children end too."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=_environment(), stdout=output, stderr=subprocess.STDOUT)
        try:
            return process.wait(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise DcptoolsError(f"Making the demo took more than {TIMEOUT:.0f} s and was stopped.") from None
        finally:  # torchrun puts its children into sessions of their own: only it can end them, and SIGTERM asks it to
            if process.poll() is None:
                process.terminate()
                process.wait()


def _environment() -> dict[str, str]:
    """One thread per process, since the processes share the cores; no GPU and no network: neither is needed."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return (
        os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"} | offline
    )


def _tails(logs: Path) -> Iterator[str]:
    """The last lines of each process, or of the launcher if no process got far enough to say something."""
    said = {path: path.read_text(errors="replace").rstrip() for path in sorted(logs.rglob("stderr.log"))}
    spoken = {path: text for path, text in said.items() if text}
    if not spoken:
        yield from _last_lines((logs / "launcher.log").read_text(errors="replace"))
    for path, text in spoken.items():
        yield f"[rank {path.parent.name}]"  # torchrun's layout is .../attempt_0/<rank>/stderr.log
        yield from _last_lines(text)


def _last_lines(text: str) -> list[str]:
    return text.rstrip().splitlines()[-TAIL:]
