"""FLOPs and weights of a diffusion transformer, from its shape.

A multiply-add counts as two. Norms, rotations and softmax are left out, as counters leave them out;
what they cost is the bytes that they move. Batches multiply all of this.
"""

from __future__ import annotations

from longtake.scheduler.geometry import ModelSpec


def layer_flops(spec: ModelSpec, tokens: int) -> int:
    """Matrix products of one layer over so many tokens, with the text's keys made before."""
    width, keys = spec.width, (spec.key_heads or spec.heads) * spec.head_dim
    attention = 4 * width**2 + 4 * width * keys
    across = 0 if spec.joint_text else 4 * width**2
    matrices = 3 if spec.gated else 2
    return tokens * (attention + across + 2 * matrices * width * spec.ffn_dim)


def attention_flops(spec: ModelSpec, queries: int, keys: int, heads: int) -> int:
    """Scores and mixing of so many heads of one layer."""
    return 4 * queries * keys * heads * spec.head_dim


def text_flops(spec: ModelSpec, layers: int) -> int:
    """The text's projection, and its keys and values in so many layers, for one prompt."""
    width = spec.width
    projection = 2 * spec.text_tokens * (spec.text.width * width + width**2)
    return projection + (0 if spec.joint_text else layers * 4 * spec.text_tokens * width**2)


def embed_flops(spec: ModelSpec, tokens: int) -> int:
    """Latents to tokens."""
    return 2 * tokens * spec.latent_channels * spec.patch**2 * spec.width


def time_flops(spec: ModelSpec, levels: int) -> int:
    """The embedding of so many noise levels, which every stage makes for itself."""
    return 2 * levels * (spec.waves * spec.width + 7 * spec.width**2)


def head_flops(spec: ModelSpec, tokens: int) -> int:
    """Tokens to flow."""
    return 2 * tokens * spec.width * spec.latent_channels * spec.patch**2


def forward_flops(spec: ModelSpec, tokens: int, keys: int | None = None) -> int:
    """One forward of all layers over `tokens`, which attend to `keys`, or to themselves."""
    joint = spec.text_tokens if spec.joint_text else 0
    queries = tokens + joint
    scores = attention_flops(spec, queries, queries if keys is None else keys + joint, spec.heads)
    if not spec.joint_text:
        scores += attention_flops(spec, tokens, spec.text_tokens, spec.heads)
    around = embed_flops(spec, tokens) + time_flops(spec, 1) + head_flops(spec, tokens)
    return around + spec.layers * (layer_flops(spec, queries) + scores)


def layer_weights(spec: ModelSpec) -> int:
    """Parameters of one layer."""
    width, keys = spec.width, (spec.key_heads or spec.heads) * spec.head_dim
    own = 2 * (width**2 + width) + 2 * (width * keys + keys) + width + keys
    across = 0 if spec.joint_text else 4 * (width**2 + width) + 4 * width
    matrices = 3 if spec.gated else 2
    forward = matrices * width * spec.ffn_dim + spec.ffn_dim + width
    return own + across + forward + 6 * width


def outer_weights(spec: ModelSpec) -> int:
    """Parameters before the first and after the last layer; every stage keeps them."""
    width, patch = spec.width, spec.latent_channels * spec.patch**2
    text = spec.text.width * width + width + width**2 + width
    time = spec.waves * width + width + width**2 + width + 6 * width**2 + 6 * width
    return patch * width + width + text + time + width * patch + patch + 2 * width


def transformer_weights(spec: ModelSpec) -> int:
    """Parameters of the whole transformer."""
    return spec.layers * layer_weights(spec) + outer_weights(spec)
