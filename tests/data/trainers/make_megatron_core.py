"""Makes the checkpoint ``megatron-core-gpt`` with ``dist_checkpointing`` of Megatron-core 0.16.1, on two processes.

    python3.11 -m venv venv
    venv/bin/python -m pip install torch==2.13.0 transformers==5.23.0 megatron-core==0.16.1 psutil
    venv/bin/python -m torch.distributed.run --nproc-per-node 2 make_megatron_core.py

A GPT model with rotary embeddings, grouped queries and SwiGLU, over two tensor-parallel processes, in the format
``torch_dist``. There is no ``config.json``: Megatron's own tools convert it. What is expected are the tensors under
Megatron's own names, as Megatron reads them into a model that is not split.
"""

from __future__ import annotations

from importlib.metadata import version

import torch
import torch.distributed as dist
from keeping import check_stored, randomise, shared_directory, store
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import apply_factories
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig


def build(tensors: int) -> GPTModel:
    config = TransformerConfig(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        num_query_groups=2,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        add_bias_linear=False,
        use_cpu_initialization=True,
        perform_initialization=False,
        bias_activation_fusion=False,
        tensor_model_parallel_size=tensors,
        gradient_accumulation_fusion=False,
    )
    return GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=96,
        max_sequence_length=64,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    )


def whole_tensors(model: GPTModel) -> dict[str, torch.Tensor]:
    """The tensors under the keys of the checkpoint, where those of all layers lie in one."""
    state = model.sharded_state_dict()
    apply_factories(state)
    tensors: dict[str, torch.Tensor] = {}
    for part in nested_values(state):
        if isinstance(part, ShardedTensor):
            whole = tensors.setdefault(part.key, torch.zeros(part.global_shape, dtype=part.dtype))
            whole[part.global_slice()] = part.data.detach()
    return tensors


if __name__ == "__main__":
    torch.cuda.synchronize = lambda: None  # Megatron calls it before it writes
    torch.cuda.current_device = lambda: "cpu"  # and asks where to put what it gathers
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    model = build(2)
    randomise({f"{name}, rank {dist.get_rank()}": parameter for name, parameter in model.named_parameters()})
    directory = shared_directory()
    state = {"model": model.sharded_state_dict(), "iteration": 1, "checkpoint_version": 3.0}
    dist_checkpointing.save(state, directory)

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=1)
    model = build(1)
    state = dist_checkpointing.load({"model": model.sharded_state_dict()}, directory)
    model.load_state_dict(state["model"])
    if dist.get_rank() == 0:
        tensors = whole_tensors(model)
        check_stored(directory, tensors)
        about = {"trainer": "megatron-core", "version": version("megatron-core"), "how": "dist_checkpointing.save"}
        store("megatron-core-gpt", directory, None, tensors, about)
    dist.barrier()
    dist.destroy_process_group()
