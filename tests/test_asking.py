"""How a model is asked for: once for each config, by however many threads, and what is answered without building it."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from checkpoints import models

from dcptools.errors import UsageError
from dcptools.expected import Expected, Naming, NotExpected, asking, expect, is_answered
from dcptools.mapping import must_build

QWEN3 = json.dumps(models.QWEN3_CONFIG)


class Builder:
    """Counts the models that are built, and answers with one after the other."""

    def __init__(self, *answers: Expected | NotExpected) -> None:
        self.answers, self.configs = list(answers), list[str]()

    def __call__(self, config: str) -> Expected | NotExpected:
        self.configs.append(config)
        time.sleep(0.05)  # so that others come meanwhile
        answer = self.answers.pop(0)
        if isinstance(answer, NotExpected) and str(answer) == "raised":
            raise answer
        return answer


def builder(monkeypatch: pytest.MonkeyPatch, *answers: Expected | NotExpected) -> Builder:
    made = Builder(*answers)
    monkeypatch.setattr(asking, "_built", made)
    monkeypatch.setattr(asking, "_answers", {})
    return made


def model(title: str) -> Expected:
    return Expected(title, Naming({}), Naming({}))


def test_threads_that_ask_for_one_model_get_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    built = builder(monkeypatch, model("first"), model("second"))
    start = threading.Barrier(4)

    def ask(_: int) -> Expected:
        start.wait(30)
        return expect(QWEN3)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert {answer.title for answer in answers} == {"first"} and built.configs == [QWEN3]


def test_that_it_cannot_be_built_is_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    built = builder(monkeypatch, NotExpected("it takes too much memory", broken=True))
    for _ in range(2):
        with pytest.raises(NotExpected, match=r"^it takes too much memory$") as caught:
            expect(QWEN3)
        assert caught.value.broken
    assert is_answered(QWEN3) and built.configs == [QWEN3]


def test_what_another_try_may_change_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    built = builder(monkeypatch, NotExpected("raised"), model("later"))
    with pytest.raises(NotExpected):
        expect(QWEN3)
    assert not is_answered(QWEN3)
    assert expect(QWEN3).title == "later" and len(built.configs) == 2


def test_the_oldest_answers_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [json.dumps({**models.QWEN3_CONFIG, "vocab_size": size}) for size in range(asking.KEPT + 1)]
    builder(monkeypatch, *(model(str(size)) for size in range(asking.KEPT + 1)))
    assert [expect(config).title for config in configs] == [str(size) for size in range(asking.KEPT + 1)]
    assert [is_answered(config) for config in configs] == [False] + [True] * asking.KEPT


@pytest.mark.parametrize("config", ["{", "[]", "{}", models.UNKNOWN_CONFIG])
def test_what_cannot_be_built_is_answered_at_once(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = builder(monkeypatch)
    assert is_answered(config)
    with pytest.raises(NotExpected):
        expect(config)
    assert built.configs == []


def test_a_preview_builds_only_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    builder(monkeypatch, model("Qwen3ForCausalLM"))
    assert not must_build(None) and not must_build(str(tmp_path))
    (tmp_path / "config.json").write_text(QWEN3)
    assert must_build(str(tmp_path))
    expect(QWEN3)
    assert not must_build(str(tmp_path))
    with pytest.raises(UsageError, match="does not exist"):
        must_build(str(tmp_path / "nowhere"))
