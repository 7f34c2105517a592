"""One training process of the demo: a tiny Qwen3 under FSDP2, saved as a trainer would save it.

``torchrun`` starts this file by its path. It imports nothing of dcptools, so that what the demo converts was
made by PyTorch and transformers alone, and so that a process starts without the packages that it does not use.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_saver import save as save_checkpoint
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SEED = 20
LEARNING_RATE = 1e-2
WINDOW = 32  # tokens of one training sequence
BATCH = 4  # sequences of one process in one step
VOCABULARY = 515  # odd, so that the embedding does not divide evenly among the processes

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SENTENCES = (
    "The lighthouse keeper wrote down the weather every morning before the first boat went out.",
    "Every boat that went out in the morning came back before the evening, and he wrote that down as well.",
    "When the weather was bad, the boats stayed in the harbour and the keeper lit the lamp early.",
    "A lamp that is lit early burns more oil, so he kept a second book, in which he counted the oil.",
    "The second book was thinner than the first book, because the weather is seldom bad for long.",
    "One winter the harbour froze, and for eleven days there was nothing to write about boats.",
    "He wrote about the ice instead: how thick it was, how it sounded, and when it began to break.",
    "The children of the village walked across the ice to the lighthouse and asked to see the books.",
    "He showed them the page of the day on which each of them was born, and what the weather had been.",
    "It was raining, said the first page; it was raining, said the second; there was fog, said the third.",
    "The children laughed and said that the weather in the books was always bad on the important days.",
    "That is because nobody comes to see the pages of the days on which the sun was shining, he said.",
    "In spring the ice broke in one night, with a sound like a cart full of stones on a wooden bridge.",
    "The boats went out again, and the keeper began a new page: wind from the west, no clouds, nine boats.",
    "Nine boats went out, nine boats came back, and the lamp was lit at half past six in the evening.",
    "Years later the books were copied, page after page, by people who wanted to know about the weather.",
    "A copy is good when every number in it is the number that the keeper wrote, and no number is missing.",
    "They checked the copy by adding the numbers of each page and comparing the sum with the sum he had written.",
    "On one page the sums were not the same, and they looked for a long time until they found the mistake.",
    "The mistake was the keeper's own: on that day he had counted a boat that was painted on the harbour wall.",
)


def make_tokenizer(directory: Path) -> None:
    """Train a byte-level BPE on the built-in sentences and save it with a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    fast: Any = PreTrainedTokenizerFast  # not annotated
    tokenizer = fast(tokenizer_object=bpe, pad_token=PAD, eos_token=END)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)


def make_config(tokenizer: Any) -> Qwen3Config:
    """The smallest Qwen3 that still has everything: grouped queries, q/k norms, a head of its own."""
    return Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )


def make_model(config: Qwen3Config, mesh: DeviceMesh) -> Any:
    """The model in float32, every layer and then the root sharded over ``mesh``.

    Each process initialises the whole model from the same seed and keeps its part of it.
    """
    torch.manual_seed(SEED)
    model: Any = Qwen3ForCausalLM(config)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def batches(tokenizer: Any, rank: int) -> torch.Tensor:
    """Windows of the text, different ones on each rank; the shape is (number of windows, WINDOW)."""
    tokens: torch.Tensor = tokenizer("\n".join(SENTENCES), return_tensors="pt")["input_ids"][0]
    windows: torch.Tensor = tokens.unfold(0, WINDOW, WINDOW // 2)
    generator = torch.Generator().manual_seed(SEED + rank)
    return windows[torch.randperm(len(windows), generator=generator)]


def train(model: Any, optimizer: torch.optim.Optimizer, windows: torch.Tensor, steps: int) -> float:
    """Take ``steps`` steps and return the loss of the last one on this rank."""
    loss = torch.tensor(float("nan"))
    for step in range(steps):
        batch = windows[torch.arange(step * BATCH, (step + 1) * BATCH) % len(windows)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def save(directory: Path, model: Any, optimizer: torch.optim.Optimizer, extra_state: dict[str, Any]) -> None:
    """Save the checkpoint, and the whole live state for those who want to compare."""
    state = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "extra_state": extra_state,
    }
    save_checkpoint(state, checkpoint_id=directory / "checkpoint")
    live: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:  # the other ranks were given an empty dict
        (directory / "live").mkdir()
        save_file(live, directory / "live" / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    assets = options.directory / "assets"

    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank = dist.get_rank()
    if rank == 0:  # one process writes it and all read it, so that all have the same vocabulary
        make_tokenizer(assets)
    dist.barrier()
    tokenizer = AutoTokenizer.from_pretrained(assets)

    model = make_model(make_config(tokenizer), init_device_mesh("cpu", (dist.get_world_size(),)))
    if rank == 0:
        model.config.save_pretrained(assets)
        model.generation_config.save_pretrained(assets)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    loss = train(model, optimizer, batches(tokenizer, rank), options.steps)
    rng = torch.get_rng_state()
    save(options.directory, model, optimizer, {"step": options.steps, "lr": LEARNING_RATE, "loss": loss, "rng": rng})
    dist.destroy_process_group()


def leave() -> NoReturn:
    """End a process that has saved everything, without the usual teardown.

    After ``fully_shard`` torch (2.13) holds on to the process group, ``destroy_process_group`` or not, so gloo's
    threads are still running when C++ objects are destroyed at exit. Now and then that ends in "terminate called
    without an active exception", and torchrun would report a failure after a perfect save.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
    leave()
