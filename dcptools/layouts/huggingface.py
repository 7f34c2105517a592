"""Names that HuggingFace models give their weights: how a state dict that was saved bare is recognized."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Names of HuggingFace models, from the first segment on. N is a number, * is anything within a segment. They are what
# transformers 5 gives its models, and 4 gave those that 5 names differently. Where ``model.`` may be a container as
# well, only what rules that out is here: ``model.encoder.block.N`` is T5's base model in a container.
HUGGINGFACE_NAMES = (
    # a base model called `model`: decoders, then encoder-decoders, then vision and language
    "model.layers.N",
    "model.embed_tokens",
    "model.encoder.layers.N.self_attn",
    "model.decoder.layers.N.self_attn",
    "model.language_model",
    "model.text_model.layers.N",
    "model.visual",
    "model.vision_tower",
    "model.multi_modal_projector",
    # a base model of another name
    *("*bert*.embeddings", "*bert*.encoder.layer.N", "distilbert.transformer.layer.N", "electra.encoder.layer.N"),
    *("transformer.wte", "transformer.h.N", "transformer.word_embeddings", "gpt_neox.layers.N", "backbone.layers.N"),
    *("vit.embeddings", "wav2vec2.encoder.layers.N", "transformer.layers.N.self_attn"),
    *("text_model.embeddings", "text_model.encoder.layers.N", "vision_model.encoder.layers.N"),
    *("language_model.layers.N", "language_model.model.layers.N", "visual.blocks.N"),
    *("vision_tower", "multi_modal_projector"),
    # the base model itself
    *("embed_tokens", "layers.N.self_attn", "layers.N.mixer", "h.N.attn", "h.N.self_attention", "wte"),
    *("embeddings.word_embeddings", "embeddings.tok_embeddings", "embeddings.patch_embeddings"),
    *("encoder.embed_tokens", "encoder.layer.N", "encoder.layers.N.self_attn", "encoder.block.N"),
    *("decoder.embed_tokens", "decoder.layers.N.self_attn", "decoder.block.N"),
)
HEADS = ("lm_head", "score", "classifier", "qa_outputs")  # are beside the base model, and in no container


def _whole_segments(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches at the start of a key, up to the end of a segment."""
    regexes = (re.escape(name).replace(r"\*", "[^.]{0,20}").replace(r"\.N", r"\.[0-9]+") for name in names)
    return re.compile(rf"(?:{'|'.join(regexes)})\.")


BODY = _whole_segments(HUGGINGFACE_NAMES)
HEAD = re.compile(rf"(?:{'|'.join(HEADS)})\.(?:weight|bias)\Z")


def is_body_name(name: str) -> bool:
    """Whether a name is one of a HuggingFace model without its head, from its first segment on."""
    return bool(BODY.match(name))


def is_huggingface_name(name: str) -> bool:
    """Whether a name is one of a HuggingFace model, from its first segment on.

    >>> is_huggingface_name("model.layers.0.mlp.up_proj.weight"), is_huggingface_name("net.0.weight")
    (True, False)
    """
    return bool(BODY.match(name) or HEAD.match(name))
