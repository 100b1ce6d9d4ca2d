"""Sections of a recipe: what is trained on what, for how long, how it is looked at and what is kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    field_validator,
    model_validator,
)

from kssm_mlx.data.tasks import PREFIX, TASKS
from kssm_mlx.errors import nearest
from kssm_mlx.training.steering_sections import Group, Section, setting

LARGEST_SEED = 2**63 - 1  # MLX and numpy take more, and not the same
LION_BETA2 = 0.99
RECIPE = "recipe:"  # of a base model: trained here by this recipe, a name or a file


class Expected(Section):
    """The number the recipe should reach: `kssm report` compares and says so."""

    metric: str = setting(..., "which number of the evaluation, such as nats_per_token or accuracy")
    value: float = setting(..., "what it should be", unit="of the metric")
    tolerance: float = setting(..., "how far off it may be", unit="of the metric", ge=0)


class About(Section):
    """What the recipe asks, and what it should give. No key here changes a run."""

    question: str = setting("", "what the run is to answer")
    hardware: str = setting("", "on what it was measured")
    minutes: float | None = setting(None, "how long it took there", unit="minutes")
    expected: Expected | None = setting(None, "the number it should reach: `{ metric, value, tolerance }`")


class Failure(Section):
    """A published run that failed and passed for a result: kept alive to see it stopped."""

    stopped_by: list[str] = setting(..., "ids of the checks that stop it", min_length=1)
    breaks: str = setting("", "what is broken where no key of a recipe can, a name in runner/failures.py")


def _refuse_unknown_task(name: str) -> None:
    if name not in TASKS:
        raise ValueError(f"source: no task {name!r}; known: {', '.join(TASKS)}{nearest(name, TASKS)}")


class Source(Section):
    """One text of a mixture, an entry of `data.sources`."""

    source: str = setting(..., "as `data.source`, a text", min_length=1)
    weight: float = setting(1.0, "its share of the rows, beside the other weights", gt=0)
    epochs: float | None = setting(
        None, "how often the run may read it: one that would read it more often is refused", gt=0
    )

    @field_validator("source")
    @classmethod
    def _a_text(cls, source: str) -> str:
        if source.startswith(PREFIX):
            raise ValueError(f"a mixture is of texts, got {source!r}, a task")
        return source


class Data(Section):
    """Where text comes from, how it becomes tokens, what is held out."""

    source: str = setting(
        "pydoc",
        "`pydoc`, `themes`, `file:PATH`, `dir:PATH`, `jsonl:PATH`, `gutenberg:FOLDER`, "
        "`wikitext:PATH`, `wikitext-joined:PATH`, `hf:DATASET` or `task:NAME`",
    )
    sources: list[Source] = setting(
        [],
        'a mixture in place of `source`: `[{ source = "pydoc", weight = 3 }, { source = "file:PATH" }]`',
        max_length=256,
    )
    tokenizer: str = setting(
        "bytes",
        "`bytes`, `chars`, `chars-reserved`, `bpe:SIZE`, `hf:PATH`, `world:PATH`, `gpt2:PATH`, "
        "`cl100k:PATH` or `neox:PATH`; of a task always `ids`",
    )
    split: Literal["auto", "documents", "contiguous"] = setting(
        "auto",
        "`documents` holds out whole documents, `contiguous` the end of the one stream; `auto` "
        "takes the split that the corpus brings, or documents where there are 20 or more or they "
        "are books or articles",
    )
    validation: float = setting(0.1, "how much is held out", unit="share of the text", gt=0, lt=0.5)
    seed: int = setting(0, "which documents are held out", ge=0, le=LARGEST_SEED)
    special_tokens: bool = setting(
        False,
        "whether a special token of the tokenizer that stands in a text, such as `<|endoftext|>`, is that "
        "token; by default it is its characters, as all text",
    )
    deduplicate: bool = setting(
        False, "leave out every paragraph that shares 64 bytes with an earlier one, in all documents"
    )
    task: dict[str, Any] = setting({}, "options of a task, which has its own split")

    @model_validator(mode="before")
    @classmethod
    def _tasks_speak_ids(cls, values: Any) -> Any:
        is_task = isinstance(values, dict) and str(values.get("source", "")).startswith(PREFIX)
        return {"tokenizer": "ids", **values} if is_task else values

    @property
    def origin(self) -> str:
        """The source, or those of a mixture."""
        return " + ".join(each.source for each in self.sources) or self.source

    @model_validator(mode="after")
    def _mixture_or_one(self):
        if self.sources and self.source != "pydoc":
            raise ValueError(
                f"sources stand in place of source, got both: {self.source!r} and {self.origin!r}"
            )
        return self

    @model_validator(mode="after")
    def _task_or_text(self):
        if not self.source.startswith(PREFIX):
            if self.task:
                raise ValueError(f'[data.task] goes with source = "task:NAME", got source {self.source!r}')
            return self
        _refuse_unknown_task(self.source.removeprefix(PREFIX))
        if (self.tokenizer, self.split, self.validation, self.deduplicate) != ("ids", "auto", 0.1, False):
            raise ValueError(
                "a task brings its tokenizer and split: leave tokenizer, split, validation and deduplicate "
                "out, and set data.task.train_rows and data.task.validation_rows"
            )
        return self


class Model(BaseModel):
    """A fresh model: `family`, `size` and any field of the family's configuration; checked by
    `kssm_mlx.models.configure`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    family: str = setting("kssm", "which architecture")
    size: str = setting("s", "which preset: `xs`, `s`, `m` or `l`")

    @property
    def overrides(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def trained_file(self) -> str:
        """The stem of the checkpoint file that holds what is trained."""
        return "model"


class Quantize(Section):
    """Fewer bits for the projections of a base model, which are then frozen."""

    bits: Literal[4, 8] = setting(..., "of a weight", unit="bits")
    mode: Literal["affine", "mxfp4", "mxfp8"] = setting(
        "affine", "`affine`: a scale and a least weight of each group; `mxfp4` (4 bits), `mxfp8` (8): a scale"
    )
    group_size: int | None = setting(
        None, "weights that share a scale: of `affine` 32, 64 (where left out) or 128, of the others 32"
    )


class Pretrained(Section):
    """A pretrained model to train on, in place of a fresh one."""

    base: str = setting(
        ...,
        "a folder, a weight file or a repository, verified beforehand; or `recipe:NAME`, which is "
        "trained here first",
        min_length=1,
    )
    train: Literal["lora", "dora", "qlora", "state", "prompt", "full", "frozen"] = setting(
        "lora",
        "`lora` trains adapters beside its wide projections, `dora` their norms too, `qlora` adapters beside "
        "projections in few bits, `state` the state that a text begins with, "
        "`prompt` vectors that are read before every text, `full` every parameter, `frozen` none of its own",
    )
    rank: int = setting(8, "of the adapters", unit="dimensions", ge=1, le=2**14)
    alpha: float = setting(16.0, "adapters are scaled by alpha / rank", gt=0)
    prompt_tokens: int = setting(16, "vectors of `prompt`", ge=1, le=2**12)
    quantize: Quantize | None = setting(
        None, "its weights in few bits, in memory, as kssm convert writes them: `{ bits = 4 }`"
    )
    graft: dict[str, Any] | None = setting(None, "phase cores in it, trained in any case")
    verify: bool = setting(
        True, "false takes a model that has not passed `kssm verify-weights`; the run records it"
    )

    @field_validator("base")
    @classmethod
    def _from_anywhere(cls, base: str) -> str:
        """A path without the folder it was meant in: the run is opened from others."""
        kind = RECIPE if base.startswith(RECIPE) else ""
        path = Path(base.removeprefix(kind)).expanduser()
        there = path.is_file() if kind else path.exists()
        return f"{kind}{path.resolve()}" if there else base

    @field_validator("graft")
    @classmethod
    def _every_option(cls, graft: dict[str, Any] | None) -> dict[str, Any] | None:
        """The options given and those left out, so that a run says what it was whatever becomes of them."""
        if graft is None:
            return None
        from kssm_mlx.models.grafts.configs import configure

        return asdict(configure(graft))

    @property
    def recipe(self) -> str | None:
        """The recipe that the base model is trained by; None for one that exists."""
        return self.base.removeprefix(RECIPE) if self.base.startswith(RECIPE) else None

    @property
    def trained_file(self) -> str:
        """The stem of the checkpoint file that holds what is trained."""
        if self.graft is not None:
            return "graft"
        whole = {"full": "model", "frozen": "model"}
        return {**whole, "state": "initial_state", "prompt": "prompt"}.get(self.train, "adapters")

    @model_validator(mode="after")
    def _bits_are_frozen(self):
        if self.quantize is not None and self.train not in ("qlora", "frozen"):
            raise ValueError(
                'quantize goes with train = "qlora", or "frozen" under a graft, since it freezes '
                f"projections; got {self.train!r}"
            )
        return self

    @model_validator(mode="after")
    def _state_alone(self):
        if self.train in ("state", "prompt") and self.graft is not None:
            raise ValueError(
                f'train = "{self.train}" learns what the base model begins with, a graft what stands in it; '
                "leave one of them out"
            )
        return self


# The two kinds of [model], under names that no key of a recipe has.
MODEL_KINDS = {"(fresh)": Model, "(base)": Pretrained}


def _kind_of_model(value: Any) -> str:
    pretrained = isinstance(value, Pretrained) or (isinstance(value, dict) and "base" in value)
    return "(base)" if pretrained else "(fresh)"


class Train(Section):
    """How long, in what batches, with which optimizer."""

    steps: int = setting(1000, "how long the run is", unit="updates", ge=1, le=10**9)
    batch_size: int = setting(16, "rows of one update", unit="rows", ge=1, le=2**20)
    context: int = setting(128, "length of a row", unit="tokens", ge=2, le=2**24)
    accumulation: int = setting(
        1, "pieces an update is computed in; does not change the result", unit="pieces", ge=1, le=2**20
    )
    optimizer: Literal["adamw", "lion", "adafactor", "muon"] = setting(
        "adamw", "the rule by which parameters move"
    )
    learning_rate: float = setting(
        2e-3,
        "the peak: what the optimizer's direction is multiplied with, whose entries are of size 1 or below; "
        "docs/recipes.md#optimizers",
        gt=0,
    )
    schedule: Literal["cosine", "linear", "constant", "wsd"] = setting(
        "cosine", "its course after the warm-up"
    )
    warmup: int = setting(50, "linear rise from 0 to the peak", unit="updates", ge=0, le=10**9)
    final_fraction: float = setting(0.1, "the last learning rate", unit="share of the peak", ge=0, le=1)
    beta1: float = setting(0.9, "memory of AdamW's first moment, and in Lion's direction", ge=0, lt=1)
    beta2: float = setting(
        0.95, "memory of AdamW's second moment; of Lion's only one, where left out 0.99", ge=0, lt=1
    )
    momentum: float = setting(0.95, "memory of Muon's matrices", ge=0, lt=1)
    epsilon: float = setting(1e-8, "added to the root of AdamW's second moment", gt=0)
    weight_decay: float = setting(
        0.1, "decoupled: a parameter shrinks by this times the learning rate in each update", ge=0
    )
    decay: Literal["matrices", "all"] = setting(
        "matrices",
        "what it shrinks: `matrices` spares what the model names in `no_decay`, `all` is every parameter",
    )
    groups: dict[str, Group] = setting(
        {},
        "component tag (rwkv, mamba, fusion, norm, embedding, head, attention, mlp, oscillator, "
        "mixer, state) to its own numbers",
    )
    component_gradients: bool = setting(
        False, "log the gradient of every component, which a model with two kinds of mixer does unasked"
    )
    clip: float = setting(1.0, "largest global norm of the gradient", gt=0)
    ema: float | None = setting(
        None,
        "memory of a running average of the parameters, such as 0.999, which is evaluated, sampled from and "
        "exported in their place; none by default",
        gt=0,
        lt=1,
    )
    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "of the computation; parameters stay float32"
    )
    checkpoint_blocks: bool = setting(
        False, "compute each block again in the backward pass: less memory, more time"
    )
    hand_off: bool = setting(
        False, "each row reads its own stretch of the text and hands its state to the next batch"
    )
    seed: int = setting(0, "of the parameters, the batches and the noise", ge=0, le=LARGEST_SEED)

    @model_validator(mode="before")
    @classmethod
    def _lion_remembers_longer(cls, values: Any) -> Any:
        is_lion = isinstance(values, dict) and values.get("optimizer") == "lion"
        return {"beta2": LION_BETA2, **values} if is_lion else values

    @model_validator(mode="after")
    def _batch_divides(self):
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulation {self.accumulation}; "
                "batch_size counts the rows of one update, accumulation the pieces it is computed in"
            )
        return self


class Eval(Section):
    """How often the held-out loss is measured, and what is sampled then."""

    every: int = setting(200, "between two evaluations", unit="updates", ge=1, le=10**9)
    tokens: int = setting(65536, "held-out text that is scored", unit="tokens", ge=256, le=2**40)
    prompt: str = setting("", "what samples continue; empty: the separator of documents")
    sample_tokens: int = setting(160, "length of a sample; 0: none", unit="tokens", ge=0, le=2**20)
    temperature: float = setting(0.8, "of the samples; 0: always the likeliest", ge=0)
    checks: list[str] = setting(
        [],
        "ids of checks whose numbers are written along the way, such as `D2`; `passkey` is D11. They "
        "stop nothing",
    )
    checks_every: int | None = setting(
        None, "between two of them; by default at every evaluation", unit="updates", ge=1
    )

    lengths_every: int | None = setting(
        None,
        "between two scorings of data.task.test_lengths, and at the end; by default at every evaluation",
        unit="updates",
        ge=1,
    )

    @model_validator(mode="after")
    def _checks_meet_evaluations(self):
        if self.lengths_every is not None and self.lengths_every % self.every:
            raise ValueError(
                f"lengths_every {self.lengths_every} is no multiple of every {self.every}: they are scored "
                "at evaluations"
            )
        if self.checks_every is not None and self.checks_every % self.every:
            raise ValueError(
                f"checks_every {self.checks_every} is no multiple of every {self.every}: they are asked at "
                "evaluations"
            )
        return self


class Save(Section):
    """Checkpoints."""

    every: int = setting(200, "between two checkpoints", unit="updates", ge=1, le=10**9)
    keep: int = setting(3, "how many are kept, beside the best", unit="checkpoints", ge=1, le=10**6)
