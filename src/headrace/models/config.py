"""A strict reader of Hugging Face configurations (``config.json``), and the fields that all decoders share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from headrace.core.errors import ModelError, did_you_mean

T = TypeVar("T")
REQUIRED: Any = object()


class Fields:
    """Typed access to the fields of a configuration. A field that is missing or null takes the default given.

    Args:
        where: what errors call it, unless the configuration names its own architecture.

    Every method raises ModelError, naming architecture, field, what was found and what is allowed.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        named = values.get("architectures")
        self.where = str(named[0]) if isinstance(named, list | tuple) and named else where

    def raw(self, name: str, default: T = REQUIRED) -> Any | T:
        value = self._values.get(name)
        if value is not None:
            return value
        if default is REQUIRED:
            near = did_you_mean(name, self._values)
            raise ModelError(f"{self.where}: the configuration lacks {name!r}, which has no default.{near}")
        return default

    def integer(self, name: str, default: T = REQUIRED, *, at_least: int = 1) -> int | T:
        value = self.raw(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < at_least:
            raise self._wrong(name, value, f"an integer of at least {at_least}")
        return int(value)

    def number(self, name: str, default: T = REQUIRED, *, above: float = 0.0) -> float | T:
        value = self.raw(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < float("inf"):
            raise self._wrong(name, value, f"a number above {above:g}")
        return float(value)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of ``length`` numbers above 0."""
        values = self.raw(name)
        wrong = self._wrong(name, values, f"a list of {length} numbers above 0")
        if not isinstance(values, list | tuple) or len(values) != length:
            raise wrong
        if not all(type(value) in (int, float) and 0.0 < value < float("inf") for value in values):
            raise wrong
        return tuple(float(value) for value in values)

    def has(self, name: str) -> bool:
        """The field is there, null or not: for the few whose null is not their default."""
        return name in self._values

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def choice(self, name: str, allowed: Sequence[str], default: str = REQUIRED) -> str:
        value = self.raw(name, default)
        if value not in allowed:
            raise self._wrong(name, value, " or ".join(repr(item) for item in allowed))
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Empty when the field is missing."""
        value = self.raw(name, {})
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return value

    def refuse(self, name: str, why: str) -> None:
        """For a field that asks for mathematics this model does not know; null, false and 0 are fine."""
        if self._values.get(name):
            raise ModelError(f"{self.where}: {name} = {self._values[name]!r} is not supported: {why}")

    def only(self, known: Collection[str]) -> None:
        """Refuses every other field that is set: what is read half is a model that is quietly worse."""
        for name in self._values:
            if name not in known:
                self.refuse(name, f"known here are {', '.join(sorted(known))}")

    def _wrong(self, name: str, value: Any, allowed: str) -> ModelError:
        return ModelError(f"{self.where}: {name} must be {allowed}, got {value!r}")


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """What the decoders of the Llama line have in common."""

    vocab_size: int
    hidden_size: int
    inner_size: int
    """Width of the MLP; 0 where layers differ in it."""
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    eps: float
    max_positions: int
    tied: bool
    """The head is the embedding's table."""
    attention_bias: bool


def read_decoder(
    fields: Fields,
    *,
    head_dim: int | None,
    tied: bool,
    eps: float = 1e-6,
    eps_name: str = "rms_norm_eps",
    inner_size: int = REQUIRED,
    attention_bias: bool = False,
) -> DecoderConfig:
    """Reads the common part.

    Args:
        head_dim: the architecture's default; None: hidden_size // num_attention_heads.
        tied: the architecture's default of ``tie_word_embeddings``.
        eps: the architecture's default of ``eps_name``.
        inner_size: the architecture's default of ``intermediate_size``, which most do not have.
        attention_bias: the architecture's default of ``attention_bias``.
    """
    fields.refuse("quantization_config", "only plain float weights are read here")
    hidden_size, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    n_kv_heads = fields.integer("num_key_value_heads", n_heads)
    if n_heads % n_kv_heads:
        raise ModelError(
            f"{fields.where}: num_attention_heads = {n_heads} must be a multiple of num_key_value_heads = {n_kv_heads}"
        )
    if head_dim is None and fields.raw("head_dim", None) is None and hidden_size % n_heads:
        raise ModelError(
            f"{fields.where}: without head_dim, hidden_size = {hidden_size} must be a multiple of"
            f" num_attention_heads = {n_heads}"
        )
    return DecoderConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        inner_size=fields.integer("intermediate_size", inner_size),
        n_layers=fields.integer("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=fields.integer("head_dim", head_dim or hidden_size // n_heads),
        eps=fields.number(eps_name, eps),
        max_positions=fields.integer("max_position_embeddings"),
        tied=fields.flag("tie_word_embeddings", tied),
        attention_bias=fields.flag("attention_bias", attention_bias),
    )


def read_experts(fields: Fields, names: Sequence[str], *, default: int, default_k: int) -> tuple[int, int]:
    """How many experts a layer has, and how many a row goes to.

    Args:
        names: of the field with the number of experts, the first that is there counts.
    """
    name = next((name for name in names if fields.raw(name, None) is not None), names[0])
    n_experts, k = fields.integer(name, default), fields.integer("num_experts_per_tok", default_k)
    if k > n_experts:
        raise ModelError(f"{fields.where}: num_experts_per_tok = {k} must be at most {name} = {n_experts}")
    return n_experts, k


FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
LINEAR = "linear_attention"


def read_layer_types(fields: Fields, n_layers: int, kinds: Sequence[str], allowed: tuple[str, str]) -> list[str]:
    """``layer_types``, one a layer; ``kinds`` where the configuration has none."""
    given = fields.raw("layer_types", list(kinds))
    if not isinstance(given, list) or len(given) != n_layers or not set(given) <= set(allowed):
        raise ModelError(
            f"{fields.where}: layer_types must list {n_layers} (num_hidden_layers) of {allowed[0]!r} and"
            f" {allowed[1]!r}, got {given!r}"
        )
    return given


def read_windows(fields: Fields, n_layers: int, kinds: Sequence[str], window: int | None) -> tuple[int | None, ...]:
    """The window of each layer, None for a full one.

    Args:
        kinds: what the architecture's older fields say; ``layer_types`` wins over them.
        window: ``sliding_window``, if the architecture's switches leave it on.
    """
    given = read_layer_types(fields, n_layers, kinds, (FULL, SLIDING))
    if SLIDING in given and window is None:
        raise ModelError(f"{fields.where}: layer_types has {SLIDING!r} layers, but there is no sliding_window")
    return tuple(window if kind == SLIDING else None for kind in given)


def read_upper_windows(fields: Fields, n_layers: int) -> tuple[int | None, ...]:
    """Qwen's switches: layers from ``max_window_layers`` on slide if ``use_sliding_window`` says so."""
    window = fields.integer("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
    first = fields.integer("max_window_layers", 28, at_least=0)
    kinds = [SLIDING if window is not None and i >= first else FULL for i in range(n_layers)]
    return read_windows(fields, n_layers, kinds, window)


def narrower(window: int | None, max_positions: int) -> int | None:
    """None for a window that no sequence outgrows: that is full attention, and its cache can do more."""
    return window if window is not None and window < max_positions else None
