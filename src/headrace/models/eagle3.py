"""EAGLE-3 draft heads (arXiv 2503.01840): one layer over a token's embedding and what the target knows beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from headrace.core.errors import CheckpointError, ConfigError, ModelError
from headrace.layers.attention import AttentionShape, SelfAttention
from headrace.layers.base import BuildContext, Layer
from headrace.layers.embedding import Embedding, LMHead
from headrace.layers.linear import Linear
from headrace.layers.mlp import GatedMLP
from headrace.layers.norm import NoHeadNorm, RMSNorm
from headrace.layers.rope import Rope
from headrace.layers.two_inputs import TwoInputs
from headrace.ops.batch import Batch
from headrace.weights.checkpoint import Checkpoint, expect

from .base import Decoder
from .config import Fields, read_decoder
from .rope_config import read_rope
from .taps import Tap, Taps

ARCHITECTURES = ("LlamaForCausalLMEagle3", "EAGLE3LlamaForCausalLM", "Eagle3LlamaForCausalLM")
"""Names that a head's configuration goes by."""

_UNKNOWN = {
    "fc_norm": "norms of the parts that are put together",
    "eh_proj_before_attn": "a projection in front of the attention",
    "next_layer_regular": "more than one layer",
}


def is_head(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of such a head."""
    return any(name in ARCHITECTURES for name in config.get("architectures") or ())


def tapped_layers(
    config: Mapping[str, Any],
    n_layers: int,
    asked: Sequence[int] | None,
    convention: str,
    where: str = "EagleDecodingConfig",
) -> list[int]:
    """The layers of the target whose outputs a head reads, from 0 on.

    Args:
        n_layers: of the target.
        asked: outputs of these layers, whatever the head's own configuration says.
        convention: what ids in that configuration mean: "inputs" or "outputs" of layers; "auto": outputs if the first
            is 1, inputs else.
        where: the layers are asked for, for the error.

    Raises ``ConfigError`` when there is nothing to go by.
    """
    if asked is not None:
        return list(asked)
    named = config.get("eagle_config", {}).get("eagle_aux_hidden_state_layer_ids")
    if named:
        outputs = convention == "outputs" or (convention == "auto" and named[0] == 1)
        return [layer if outputs else layer - 1 for layer in named]
    if n_layers <= 5:
        raise ConfigError(
            f"{where}: the model has {n_layers} layers, and the usual three are defined from 6 on;"
            " name them with eagle3_layers_to_capture"
        )
    return [1, n_layers // 2 - 1, n_layers - 4]


class MidLayer(Layer):
    """x + attention([norm e | norm x]), then x + mlp(norm x)."""

    def __init__(
        self, ctx: BuildContext, name: str, hidden_size: int, eps: float, attention: Layer, mlp: Layer, normed: bool
    ) -> None:
        self.embedding_norm = RMSNorm(ctx, f"{name}.input_layernorm", hidden_size, eps)
        self.state_norm = RMSNorm(ctx, f"{name}.hidden_norm", hidden_size, eps)
        self.attention = attention
        self.mlp_norm = RMSNorm(ctx, f"{name}.post_attention_layernorm", hidden_size, eps)
        self.mlp = mlp
        self._normed = normed
        self._add = ctx.ops.add

    def __call__(self, x: torch.Tensor, e: torch.Tensor, angles: Any, batch: Batch) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        normed = self.state_norm(x)
        mixed = self.attention((self.embedding_norm(e), normed), angles, batch)  # type: ignore[operator]
        x = self._add(normed if self._normed else x, mixed)
        return self._add(x, self.mlp(self.mlp_norm(x)))  # type: ignore[operator]


class Eagle3Head(Decoder):
    """Row t of a batch holds token t + 1, and beside it (``Batch.states``) the target's states after token t, or what
    this head made of the row before. Its logits are over ``vocab_size`` draft tokens.

    Args:
        checkpoint: what it will be loaded from: some tensors are optional.
        embed, head: the target's, for a checkpoint without its own.
        target_sizes: of the target: hidden, vocabulary, and how many states there are.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        ctx: BuildContext,
        checkpoint: Checkpoint,
        embed: Callable[[torch.Tensor], torch.Tensor],
        head: Callable[[torch.Tensor], torch.Tensor],
        target_sizes: tuple[int, int, int],
    ) -> None:
        fields = Fields(config, "an EAGLE-3 head")
        c = read_decoder(fields, head_dim=None, tied=False)
        target_hidden, target_vocab, n_states = target_sizes
        draft_vocab = fields.integer("draft_vocab_size", c.vocab_size)
        _check(fields, c.vocab_size, c.n_layers, target_vocab, draft_vocab)
        super().__init__(draft_vocab, c.max_positions, tied=False)
        self.ignore_below("d2t", "t2d")
        eagle, size, names = fields.mapping("eagle_config"), c.hidden_size, checkpoint.names()
        own_table = "embed_tokens.weight" in names
        own_head = "lm_head.weight" in names
        if not own_table and size != target_hidden:
            raise ModelError(
                f"{fields.where}: hidden_size = {size} is not the target's {target_hidden}, so that the head needs"
                " embed_tokens of its own, and has none"
            )
        if not own_head and (draft_vocab != target_vocab or size != target_hidden):
            raise ModelError(f"{fields.where}: there is no lm_head, and the target's does not fit")
        table = Embedding(ctx, "embed_tokens", c.vocab_size, size) if own_table else None
        self._own_table, self._embed = table, table or embed
        width = n_states * target_hidden
        self._wide = width if "fc.weight" in names else 0
        if self._wide == size:
            raise ModelError(f"{fields.where}: an fc over one state is not told from a state of the head's own")
        if not self._wide and width != size:
            raise ModelError(
                f"{fields.where}: there is no fc, so that it reads one state of {size} values, not {width}"
            )
        self.fc = Linear(ctx, ("fc",), width, (size,)) if self._wide else None
        self.input_norm = RMSNorm(ctx, "input_norm", width, c.eps) if eagle.get("norm_before_fc") else None
        name = "midlayer" if any(one.startswith("midlayer.") for one in names) else "layers.0"
        shape = AttentionShape(size, c.n_heads, c.n_kv_heads, c.head_dim)
        parts = tuple(f"{name}.self_attn.{part}_proj" for part in "qkv")
        heads = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.head_dim)
        attention = SelfAttention(
            ctx, f"{name}.self_attn", shape, NoHeadNorm(), scale=c.head_dim**-0.5,
            qkv=TwoInputs(ctx, parts, size, heads),
        )  # fmt: skip
        mlp = GatedMLP(ctx, f"{name}.mlp", size, c.inner_size, fields.choice("hidden_act", ("silu",), "silu"))
        normed = fields.flag("norm_before_residual", False)
        self.rope = Rope(ctx, read_rope(fields, head_dim=c.head_dim, max_positions=c.max_positions), c.head_dim)
        layer = MidLayer(ctx, name, size, c.eps, attention, mlp, normed)
        norm = RMSNorm(ctx, "norm", size, c.eps)
        after_norm = bool(eagle.get("return_hidden_post_norm")) or fields.flag("norm_output", False)
        self.layer = layer if after_norm else Tap(layer)
        self.norm = Tap(norm) if after_norm else norm
        self.taps = Taps(part for part in (self.layer, self.norm) if isinstance(part, Tap))
        """What the next row reads in place of the target's states."""
        self.head = LMHead(ctx, "lm_head", draft_vocab, size) if own_head else head  # type: ignore[assignment]
        self.token_ids = _token_ids(checkpoint, draft_vocab, target_vocab)
        """[vocab_size] int64: draft tokens in the target's vocabulary."""

    def forward(self, batch: Batch) -> torch.Tensor:
        x = batch.states
        if self._wide and x.shape[1] == self._wide:
            x = self.fc(x if self.input_norm is None else self.input_norm(x))
        x = self.layer(x, self._embed(batch.input_ids), self.rope(batch.positions), batch)
        return self.norm(x)


def _token_ids(checkpoint: Checkpoint, draft_vocab: int, vocab_size: int) -> torch.Tensor:
    """[draft_vocab] int64: draft tokens in the target's vocabulary, by the offsets in ``d2t``. Raises
    ``CheckpointError``."""
    ids = torch.arange(draft_vocab)
    if "d2t" in checkpoint.names():
        expect(checkpoint, "d2t", (draft_vocab,))
        ids = ids + checkpoint.tensor("d2t").long()
    elif draft_vocab != vocab_size:
        raise CheckpointError(
            f"{checkpoint.path}: draft_vocab_size is {draft_vocab} of {vocab_size} tokens, and there is no tensor 'd2t'"
            " that says which"
        )
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise CheckpointError(f"{checkpoint.path}: d2t leads out of the vocabulary of {vocab_size} tokens")
    return ids


def _check(fields: Fields, vocab_size: int, n_layers: int, target_vocab: int, draft_vocab: int) -> None:
    eagle = fields.mapping("eagle_config")
    for name, why in _UNKNOWN.items():
        if eagle.get(name) or fields.raw(name, False):
            raise ModelError(f"{fields.where}: {name} is set: {why} are not supported in a draft head")
    if n_layers != 1:
        raise ModelError(f"{fields.where}: num_hidden_layers = {n_layers}; a draft head has one layer here")
    if vocab_size != target_vocab:
        raise ConfigError(
            f"EagleDecodingConfig.speculative_model was made for {vocab_size} tokens, the model has {target_vocab}; a"
            " draft head belongs to one model"
        )
    if draft_vocab > vocab_size:
        raise ModelError(f"{fields.where}: draft_vocab_size = {draft_vocab} is more than vocab_size = {vocab_size}")
