"""How drafts are made: the values of ``speculative_config``. Names, meanings and defaults follow TensorRT-LLM's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_serializer, field_validator, model_validator

from .config_base import Config, Positive

_ACCEPTANCE = ("use_rejection_sampling", "use_relaxed_acceptance_for_thinking")


class DecodingBaseConfig(Config):
    """What all of them have. A draft is kept only if it is what would have been drawn, so that none of it changes an
    output; but for ``use_rejection_sampling`` and ``use_relaxed_acceptance_for_thinking``, which do."""

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

    use_rejection_sampling: bool = False
    """CHANGES OUTPUTS of requests that draw: more drafts are kept, and tokens have the same distribution, but they are
    other ones, and depend on the drafts. Greedy requests are as ever."""
    use_relaxed_acceptance_for_thinking: bool = False
    """CHANGES OUTPUTS: inside a thinking part a draft is kept that is only nearly as likely as the best token."""
    relaxed_topk: Positive = 1
    """Such a draft is one of so many likeliest tokens."""
    relaxed_delta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """And its probability is at most so much below the largest."""
    begin_thinking_phase_token: Annotated[int, Field(ge=0)] = 128798
    end_thinking_phase_token: Annotated[int, Field(ge=0)] = 128799
    """Between them it thinks."""

    @property
    def changes_outputs(self) -> bool:
        return self.use_rejection_sampling or self.use_relaxed_acceptance_for_thinking

    def model_post_init(self, context: Any, /) -> None:
        # What tells the kinds apart counts as given: a dump of what was given can be read again.
        self.model_fields_set.add("decoding_type")

    @model_validator(mode="after")
    def _relaxed_or_not(self) -> DecodingBaseConfig:
        names = ("relaxed_topk", "relaxed_delta", "begin_thinking_phase_token", "end_thinking_phase_token")
        given = [name for name in names if name in self.model_fields_set]
        if given and not self.use_relaxed_acceptance_for_thinking:
            raise ValueError(f"{given[0]} goes with use_relaxed_acceptance_for_thinking=True; set it, or leave it out")
        if self.begin_thinking_phase_token == self.end_thinking_phase_token:
            raise ValueError("begin_thinking_phase_token and end_thinking_phase_token are the same token")
        return self

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
    eagle3_one_model: bool = True
    """The head's keys and values lie in the model's cache. False: it has a cache of its own, with a prefix index."""
    eagle3_layers_to_capture: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """The layers whose outputs the head reads, from 0 on; None: what its configuration says, else the usual three."""
    use_dynamic_tree: bool = False
    """Drafts are a tree of the likeliest paths; else a chain."""
    dynamic_tree_max_topK: Annotated[int, Field(ge=2, le=16)] | None = None
    """With it: most drafts that go on at each depth, and most that follow one."""
    max_total_draft_tokens: Annotated[int, Field(ge=2, le=64)] | None = None
    """With it: most drafts of a sequence in a step, of all paths; ``max_draft_len`` is the length of the longest path.
    None: ``max_draft_len`` times ``dynamic_tree_max_topK``, 64 at most."""
    eagle3_layer_ids: Literal["auto", "inputs", "outputs"] = "auto"
    """What layer ids in the head's configuration mean; auto: outputs of layers if the first is 1, inputs else."""

    @property
    def total_drafts(self) -> int:
        """Most drafts of a sequence in a step."""
        if not self.use_dynamic_tree or self.dynamic_tree_max_topK is None:
            return self.max_draft_len
        return self.max_total_draft_tokens or min(64, self.max_draft_len * self.dynamic_tree_max_topK)

    @property
    def n_lanes(self) -> int:
        """Paths beside the first that a tree may have, or that it may grow from."""
        return max(self.dynamic_tree_max_topK or 0, self.total_drafts - 1)

    @model_validator(mode="after")
    def _tree_or_chain(self) -> EagleDecodingConfig:
        width = self.dynamic_tree_max_topK
        if not self.use_dynamic_tree:
            for name in ("dynamic_tree_max_topK", "max_total_draft_tokens"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} goes with use_dynamic_tree=True; set it, or leave it out")
            return self
        if width is None:
            raise ValueError("use_dynamic_tree needs dynamic_tree_max_topK, from 2 to 16: drafts that go on at a depth")
        most = width + (self.max_draft_len - 1) * width**2
        if not self.max_draft_len < self.total_drafts <= most:
            raise ValueError(
                f"max_total_draft_tokens={self.total_drafts}: a tree with max_draft_len={self.max_draft_len} and"
                f" dynamic_tree_max_topK={width} has {self.max_draft_len + 1} to {most} drafts"
            )
        if not self.eagle3_one_model:
            raise ValueError(
                "eagle3_one_model=False goes with chains of drafts alone; leave it or use_dynamic_tree out"
            )
        for name in _ACCEPTANCE:
            if getattr(self, name):
                raise ValueError(f"{name} goes with chains of drafts alone; leave it or use_dynamic_tree out")
        return self


Eagle3DecodingConfig = EagleDecodingConfig


class MTPDecodingConfig(DecodingBaseConfig):
    """Drafts by MTP layers: those that the model's own checkpoint carries, or one of another folder."""

    decoding_type: Literal["MTP"] = "MTP"
    max_draft_len: Annotated[int, Field(ge=1, le=64)] = 1
    num_nextn_predict_layers: Annotated[int, Field(ge=1, le=64)] | None = None
    """The older name of ``max_draft_len``."""
    speculative_model: str | None = None
    """Folder, built-in name or hub id of what has the layer; None: the model's own checkpoint."""
    use_mtp_vanilla: bool = False
    """A layer for each draft, each with keys of its own; where the checkpoint has fewer, they take turns, each turn
    with a copy of the weights. Else one layer makes all drafts, from its own states."""
    mtp_eagle_one_model: bool = True
    """The layer's keys and values lie in the model's cache. False: it has a cache of its own, with a prefix index."""

    @model_validator(mode="after")
    def _vanilla_goes_alone(self) -> MTPDecodingConfig:
        if self.use_mtp_vanilla and not self.mtp_eagle_one_model:
            raise ValueError(
                "mtp_eagle_one_model=False is about a layer that is used again and again; leave it out, or"
                " use_mtp_vanilla"
            )
        if self.use_mtp_vanilla and self.changes_outputs:
            raise ValueError(
                f"{next(name for name in _ACCEPTANCE if getattr(self, name))} makes outputs depend on drafts, and those"
                " of use_mtp_vanilla depend on whose prefix was found in the cache; leave out one of them"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _older_name(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("num_nextn_predict_layers") is None:
            return given
        number = given["num_nextn_predict_layers"]
        if given.get("max_draft_len", number) != number:
            raise ValueError(
                f"num_nextn_predict_layers={number} is the older name of max_draft_len={given['max_draft_len']};"
                " give one of them"
            )
        return given | {"max_draft_len": number}


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
        for name in (*("max_concurrency", "draft_len_schedule", "acceptance_window"), *_ACCEPTANCE):
            if getattr(self, name):
                raise ValueError(f"{name} is about drafts, and there are none; leave it out")
        return self


class AutoDecodingConfig(DecodingBaseConfig):
    """The engine chooses: what ``speculative_model`` is drafts, without one an MTP layer of the model's checkpoint, or
    else the text so far. Unless ``max_concurrency`` or ``draft_len_schedule`` says otherwise there are drafts while at
    most 16 sequences run."""

    decoding_type: Literal["AUTO"] = "AUTO"
    max_draft_len: Annotated[int, Field(ge=1, le=64)] = 4
    speculative_model: str | None = None
    """An EAGLE-3 head, an MTP layer (``LlamaMTPModel``), or a whole model with the same vocabulary."""


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
    | Annotated[MTPDecodingConfig, Tag("MTP")]
    | Annotated[UserProvidedDecodingConfig, Tag("User_Provided")]
    | Annotated[SaveHiddenStatesDecodingConfig, Tag("SaveState")]
    | Annotated[AutoDecodingConfig, Tag("AUTO")],
    Discriminator(_kind),
]
