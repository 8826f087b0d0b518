"""How drafts are made: the values of ``speculative_config``. Names, meanings and defaults follow TensorRT-LLM's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_serializer, field_validator, model_validator

from .config_base import Config, Positive


class DecodingBaseConfig(Config):
    """What all of them have. None of it changes an output: a draft is kept only if it is what would have been drawn."""

    max_draft_len: Annotated[int, Field(ge=1, le=64)]
    """Most drafts of a sequence in a step."""
    max_concurrency: Positive | None = None
    """No drafts while more sequences run than this."""
    draft_len_schedule: dict[Positive, Annotated[int, Field(ge=0, le=64)]] | None = None
    """Number of running sequences -> most drafts of each. The smallest number not below how many run counts; beyond the
    largest there are no drafts."""
    acceptance_window: Positive | None = None
    """Checks of drafts that are looked back on; with ``acceptance_length_threshold``."""
    acceptance_length_threshold: Annotated[float, Field(gt=1.0)] | None = None
    """No drafts any more once the checks in the window have yielded fewer tokens each on average."""

    def model_post_init(self, context: Any, /) -> None:
        # What tells the kinds apart counts as given: a dump of what was given can be read again.
        self.model_fields_set.add("decoding_type")

    @model_validator(mode="after")
    def _window_and_threshold(self) -> DecodingBaseConfig:
        if (self.acceptance_window is None) != (self.acceptance_length_threshold is None):
            raise ValueError("acceptance_window and acceptance_length_threshold go together: give both or neither")
        return self


class NGramDecodingConfig(DecodingBaseConfig):
    """Drafts from the text so far: the tokens that followed the last n tokens before."""

    decoding_type: Literal["NGram"] = "NGram"
    max_matching_ngram_size: Annotated[int, Field(ge=1, le=32)] = 2
    is_keep_all: bool = True
    is_use_oldest: bool = True
    is_public_pool: bool = True


class SADecodingConfig(DecodingBaseConfig):
    """Drafts from the sequence's own text by a suffix automaton: what followed its longest repeated suffix."""

    decoding_type: Literal["SA"] = "SA"
    min_matching_length: Positive = 2
    """Shortest suffix that counts."""


class DraftTargetDecodingConfig(DecodingBaseConfig):
    """Drafts by a second, smaller model with the same vocabulary."""

    decoding_type: Literal["Draft_Target"] = "Draft_Target"
    speculative_model: str
    """Folder, .gguf file, built-in name or hub id of the draft model."""


class EagleDecodingConfig(DecodingBaseConfig):
    """Drafts by an EAGLE-3 head: one small layer that reads the model's hidden states."""

    decoding_type: Literal["Eagle"] = "Eagle"
    speculative_model: str
    """Folder, built-in name or hub id of the head."""
    eagle3_one_model: Literal[True] = True
    """The head runs in the model's own worker, and its keys and values lie in the same cache."""
    eagle3_layers_to_capture: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """The layers whose outputs the head reads, from 0 on; None: what its configuration says, else the usual three."""
    eagle3_layer_ids: Literal["auto", "inputs", "outputs"] = "auto"
    """What layer ids in the head's configuration mean; auto: outputs of layers if the first is 1, inputs else."""


Eagle3DecodingConfig = EagleDecodingConfig


class UserProvidedDecodingConfig(DecodingBaseConfig):
    """Drafts by a function of yours. What it raises is the error of the request that it was asked about."""

    decoding_type: Literal["User_Provided"] = "User_Provided"
    drafter: Any
    """(token ids of prompt and output so far, most drafts) -> draft token ids."""

    @field_validator("drafter")
    @classmethod
    def _can_be_called(cls, drafter: Any) -> Any:
        if not callable(drafter):
            raise ValueError("must be a function: (token ids so far, most drafts) -> draft token ids")
        return drafter

    @field_serializer("drafter")
    def _by_name(self, drafter: Any) -> str:
        return getattr(drafter, "__qualname__", type(drafter).__qualname__)


class SaveHiddenStatesDecodingConfig(DecodingBaseConfig):
    """Drafts nothing: writes what the model makes of every token, for a draft head to learn from."""

    decoding_type: Literal["SaveState"] = "SaveState"
    max_draft_len: Literal[0] = 0
    output_directory: str
    write_interval: Positive = 20
    """Outputs of a file."""
    file_prefix: Annotated[str, Field(min_length=1, pattern=r"^[^/\\\x00]+$")] = "data"
    """Of the names of files: PREFIX_0.pt, PREFIX_1.pt, ..., after those that are there."""
    eagle3_layers_to_capture: Annotated[tuple[Annotated[int, Field(ge=-1)], ...], Field(min_length=1)] | None = None
    """The layers whose outputs are kept, from 0 on; None: the usual three. -1 is the last state, which always is."""

    @model_validator(mode="after")
    def _nothing_to_pace(self) -> SaveHiddenStatesDecodingConfig:
        for name in ("max_concurrency", "draft_len_schedule", "acceptance_window"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is about drafts, and there are none; leave it out")
        return self


def _kind(given: Any) -> str:
    """``decoding_type``; NGram where a mapping has none."""
    if isinstance(given, dict):
        return str(given.get("decoding_type", "NGram"))
    return str(getattr(given, "decoding_type", type(given).__name__))


SpeculativeConfig = Annotated[
    Annotated[NGramDecodingConfig, Tag("NGram")]
    | Annotated[SADecodingConfig, Tag("SA")]
    | Annotated[DraftTargetDecodingConfig, Tag("Draft_Target")]
    | Annotated[EagleDecodingConfig, Tag("Eagle")]
    | Annotated[UserProvidedDecodingConfig, Tag("User_Provided")]
    | Annotated[SaveHiddenStatesDecodingConfig, Tag("SaveState")],
    Discriminator(_kind),
]
