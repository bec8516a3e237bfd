"""Which decoder layers of transformers the fused kernels stand in for, and where in them the weights are.

A class is listed once its forward has been read: what is fused must be that forward and nothing else. The check at load
(`worker.model_check`) compares logits all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch


class Activation(IntEnum):
    """Of the gate; the numbers are those of kernels/linear.h."""

    SILU = 0
    GELU_TANH = 1


_ACTIVATIONS = {"silu": Activation.SILU, "swish": Activation.SILU, "gelu_pytorch_tanh": Activation.GELU_TANH}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer. Linear weights are (out_features, in_features), norms (width,); None where there is none."""

    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    output: torch.Tensor
    output_bias: torch.Tensor | None
    gate: torch.Tensor
    gate_bias: torch.Tensor | None
    up: torch.Tensor
    up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None
    activation: Activation
    norm_epsilon: float
    attention_norm: torch.Tensor | None = None
    attention_output_norm: torch.Tensor | None = None
    mlp_norm: torch.Tensor | None = None
    mlp_output_norm: torch.Tensor | None = None
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None
    residual_scale: float = 1.0
    is_rotated: bool = True


def is_known(layer: Any) -> bool:
    """True if `describe_layer` finds the weights of this layer, and the kernels compute its activation."""
    is_ours = type(layer).__module__.startswith("transformers.models.") and type(layer).__name__ in _DESCRIBERS
    return is_ours and layer.mlp.config.hidden_act in _ACTIVATIONS


def describe_layer(layer: Any) -> LayerWeights:
    """Finds the weights of a layer that is known; some are joined, and so copied."""
    return _DESCRIBERS[type(layer).__name__](layer)


def _describe_projections(layer: Any, norm_epsilon: float) -> LayerWeights:
    """The projections as most layers have them, each of its own; norms are the caller's."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return LayerWeights(
        qkv=torch.cat([projection.weight for projection in projections]),
        qkv_bias=_concatenate_biases(projections),
        output=attention.o_proj.weight,
        output_bias=attention.o_proj.bias,
        gate=mlp.gate_proj.weight,
        gate_bias=mlp.gate_proj.bias,
        up=mlp.up_proj.weight,
        up_bias=mlp.up_proj.bias,
        down=mlp.down_proj.weight,
        down_bias=mlp.down_proj.bias,
        activation=_ACTIVATIONS[mlp.config.hidden_act],
        norm_epsilon=norm_epsilon,
    )


def _describe_llama(layer: Any) -> LayerWeights:
    return replace(
        _describe_projections(layer, layer.input_layernorm.variance_epsilon),
        attention_norm=layer.input_layernorm.weight,
        mlp_norm=layer.post_attention_layernorm.weight,
    )


def _concatenate_biases(projections: tuple[Any, ...]) -> torch.Tensor | None:
    if all(projection.bias is None for projection in projections):
        return None
    return torch.cat(
        [
            torch.zeros(projection.out_features) if projection.bias is None else projection.bias.float()
            for projection in projections
        ]
    )


def _describe_qwen3(layer: Any) -> LayerWeights:
    attention = layer.self_attn
    return replace(_describe_llama(layer), query_norm=attention.q_norm.weight, key_norm=attention.k_norm.weight)


def _describe_granite(layer: Any) -> LayerWeights:
    return replace(_describe_llama(layer), residual_scale=float(layer.residual_multiplier))


def _describe_smollm3(layer: Any) -> LayerWeights:
    return replace(_describe_llama(layer), is_rotated=bool(layer.self_attn.use_rope))


def _describe_phi3(layer: Any) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    gate, up = mlp.gate_up_proj.weight.chunk(2)
    return LayerWeights(
        qkv=attention.qkv_proj.weight,
        qkv_bias=attention.qkv_proj.bias,
        output=attention.o_proj.weight,
        output_bias=attention.o_proj.bias,
        gate=gate,
        gate_bias=None,
        up=up,
        up_bias=None,
        down=mlp.down_proj.weight,
        down_bias=mlp.down_proj.bias,
        activation=_ACTIVATIONS[mlp.config.hidden_act],
        norm_epsilon=layer.input_layernorm.variance_epsilon,
        attention_norm=layer.input_layernorm.weight,
        mlp_norm=layer.post_attention_layernorm.weight,
    )


def _describe_olmo2(layer: Any) -> LayerWeights:
    return replace(
        _describe_projections(layer, layer.post_attention_layernorm.variance_epsilon),
        attention_output_norm=layer.post_attention_layernorm.weight,
        mlp_output_norm=layer.post_feedforward_layernorm.weight,
        query_norm=layer.self_attn.q_norm.weight,
        key_norm=layer.self_attn.k_norm.weight,
    )


_DESCRIBERS: dict[str, Callable[[Any], LayerWeights]] = {
    "GraniteDecoderLayer": _describe_granite,
    "LlamaDecoderLayer": _describe_llama,
    "MistralDecoderLayer": _describe_llama,
    "Olmo2DecoderLayer": _describe_olmo2,
    "Phi3DecoderLayer": _describe_phi3,
    "Qwen2DecoderLayer": _describe_llama,
    "Qwen3DecoderLayer": _describe_qwen3,
    "SmolLM3DecoderLayer": _describe_smollm3,
}
