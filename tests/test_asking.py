"""How a model is asked for: once for each config, by however many threads, and what is answered without building it."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from checkpoints import models

from dcptools.errors import UsageError
from dcptools.expected import Expected, Naming, NotExpected, asking, building, expect, is_answered
from dcptools.mapping import must_build
from tests.fuzz import architecture

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


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is more than 1,000, which no model has"),
        ({"num_hidden_layers": 1e300}, "num_hidden_layers is more than 1,000, which no model has"),
        ({"num_experts": 10**7}, "num_experts is more than 5,000, which no model has"),
        ({"num_labels": 10**4000}, "num_labels is more than 100,000, which no model has"),
        ({"vision_config": {"depths": [2, 10**6]}}, "depths is more than 1,000, which no model has"),
        ({"a" * 5000 + "layers": 1001}, "a" * 100 + " is more than 1,000, which no model has"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value))[:20],
)
def test_more_layers_than_any_model_has_are_not_tried(
    fields: dict[str, Any], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = builder(monkeypatch)
    config = json.dumps({**models.QWEN3_CONFIG, **fields})
    with pytest.raises(NotExpected) as caught:
        expect(config)
    assert (str(caught.value), caught.value.broken, is_answered(config), built.configs) == (found, True, True, [])


def test_what_models_have_many_of_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    many = {
        "num_hidden_layers": 1000, "num_experts": 2048, "vocab_size": 10**6, "hidden_size_per_layer": 16384,
        "label2id": {"the top layer": 21842}, "num_labels": 21843,
    }  # fmt: skip
    builder(monkeypatch, model("large"))
    assert expect(json.dumps({**models.QWEN3_CONFIG, **many})).title == "large"


LARGE = json.dumps({**models.QWEN3_CONFIG, "num_hidden_layers": 990})
WITH_LESS = "from dcptools.expected import building; building.MAX_BYTES = 24 << 20; building.main()"


def test_building_has_a_bound_of_memory() -> None:
    """In a new process: this one has memory that tests before it gave back, and that is not counted again."""
    done = subprocess.run([sys.executable, "-c", WITH_LESS], input=LARGE.encode(), capture_output=True, check=True)
    assert json.loads(done.stdout) == {"broken": "building it takes more than 24 MB of memory"}


def test_no_memory_is_said_by_whatever_error_it_comes_as(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of modules may be what there is no memory for, and transformers says it in an error of its own."""

    def build(config: dict[str, Any]) -> None:
        try:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "modules")
        except OSError as error:
            raise ModuleNotFoundError("Could not import module") from error

    monkeypatch.setattr(building, "_bound", lambda: None)
    monkeypatch.setattr(building, "_unbound", lambda: None)
    monkeypatch.setattr(building, "build", build)
    assert building.answer({}) == {"broken": "building it takes more than 640 MB of memory"}


def test_building_has_a_bound_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "SECONDS", 1)
    assert architecture.built(LARGE) == {"broken": "building it takes more than 1 seconds"}


QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_hidden_layers": 48, "num_experts": 128,
    "num_experts_per_tok": 8, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 151936,
    "tie_word_embeddings": False,
}  # fmt: skip
DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_hidden_layers": 61,
    "first_k_dense_replace": 3, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8,
    "topk_group": 4, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280, "max_position_embeddings": 163840,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    ("config", "billions"), [(QWEN3_30B_A3B, 30.5), (DEEPSEEK_V3, 671)], ids=lambda value: str(value)[:40]
)
def test_the_largest_models_are_built_within_the_bounds(config: dict[str, Any], billions: float) -> None:
    shapes = expect(json.dumps(config)).stored.shapes
    assert sum(math.prod(shape or ()) for shape in shapes.values()) / 1e9 == pytest.approx(billions, rel=0.01)


def test_a_preview_builds_only_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    builder(monkeypatch, model("Qwen3ForCausalLM"))
    assert not must_build(None) and not must_build(str(tmp_path))
    (tmp_path / "config.json").write_text(QWEN3)
    assert must_build(str(tmp_path))
    expect(QWEN3)
    assert not must_build(str(tmp_path))
    with pytest.raises(UsageError, match="does not exist"):
        must_build(str(tmp_path / "nowhere"))
