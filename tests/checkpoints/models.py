"""State dicts of tiny models that transformers makes: the names are those of the real ones."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .saved import State

_DECODER: dict[str, Any] = {
    **{"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
_BERT = {name: _DECODER[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
_BERT |= {"num_attention_heads": 2, "max_position_embeddings": 8}
_T5 = {"vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
_GPT2 = {"vocab_size": 16, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
_QWEN_VISION = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 8}
_CLIP_VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
_WHISPER = {
    **{"vocab_size": 16, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 4},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8},
    **{"max_source_positions": 8, "max_target_positions": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "decoder_start_token_id": 1,
}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _DECODER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_DECODER, "tie_word_embeddings": True}),
    "qwen3, the base model": ("Qwen3Model", "Qwen3Config", _DECODER),
    "qwen3, a reward model": ("Qwen3ForSequenceClassification", "Qwen3Config", {**_DECODER, "num_labels": 1}),
    "qwen3, questions": ("Qwen3ForQuestionAnswering", "Qwen3Config", _DECODER),
    "qwen2.5-vl": (
        "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig",
        {"text_config": _DECODER, "vision_config": _QWEN_VISION},
    ),
    "llava": (
        "LlavaForConditionalGeneration", "LlavaConfig",
        {
            "text_config": {**_DECODER, "model_type": "llama"},
            "vision_config": {**_CLIP_VISION, "model_type": "clip_vision_model", "image_size": 8, "patch_size": 4},
        },
    ),
    "bert": ("BertForMaskedLM", "BertConfig", _BERT),
    "bert, a classifier": ("BertForSequenceClassification", "BertConfig", _BERT),
    "bert, the base model": ("BertModel", "BertConfig", _BERT),
    "modernbert": (
        "ModernBertForMaskedLM", "ModernBertConfig",
        {**_BERT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5),
    "t5, the encoder": ("T5EncoderModel", "T5Config", _T5),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "gpt2, the base model": ("GPT2Model", "GPT2Config", _GPT2),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", _WHISPER),
}  # fmt: skip
"""A class of transformers, its config's class, and what makes it tiny."""


# What model_state() of ``saved`` gives is this model.
QWEN3_CONFIG: dict[str, Any] = {
    **{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 16, "hidden_size": 8},
    **{"intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    **{"head_dim": 4, "tie_word_embeddings": False},
}
# The model's own code would be needed to know what it expects, so nothing is known of it, and nothing is wrong either.
UNKNOWN_CONFIG = json.dumps(
    {"architectures": ["MineForCausalLM"], "model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.Mine"}}
)


def assets(directory: Path, config: str | dict[str, Any] = UNKNOWN_CONFIG, tokenizer: bytes = b"{}") -> Path:
    """A new directory with a config and a tokenizer; of the model nothing is known unless the config says otherwise."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (directory / "tokenizer.json").write_bytes(tokenizer)
    return directory


@functools.cache
def huggingface_state(model: str) -> State:
    """The state dict of a tiny model of that name in :data:`MODELS`."""
    import transformers

    transformers.logging.set_verbosity_error()
    name, config_name, options = MODELS[model]
    make: Callable[[Any], torch.nn.Module] = getattr(transformers, name)
    return dict(make(getattr(transformers, config_name)(**options)).state_dict())


def without_tied(state: State) -> State:
    """The state dict without what shares the memory of an earlier tensor, as trainers leave it that store ties once."""
    seen: set[int] = set()
    kept: State = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen:
            kept[name] = tensor
            seen.add(tensor.data_ptr())
    return kept
