"""Sections of a recipe: what is trained on what, for how long, how it is looked at and what is kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from kssm_mlx.data.tasks import PREFIX, TASKS
from kssm_mlx.errors import nearest
from kssm_mlx.training.steering_sections import Group, Section

LARGEST_SEED = 2**63 - 1  # MLX and numpy take more, and not the same
RECIPE = "recipe:"  # of a host: trained here by this recipe, a name or a file


class Expected(Section):
    """The number the recipe should reach: `kssm report` compares and says so."""

    metric: str
    value: float
    tolerance: float = Field(ge=0)


class About(Section):
    question: str = ""
    hardware: str = ""
    minutes: float | None = None
    expected: Expected | None = None


class Failure(Section):
    """A published run that failed and passed for a result: kept alive to see it stopped.

    stopped_by: ids of the checks that stop it. breaks: what is broken where no key of a recipe can, a name in
    runner/failures.py.
    """

    stopped_by: list[str] = Field(min_length=1)
    breaks: str = ""


def _refuse_unknown_task(name: str) -> None:
    if name not in TASKS:
        raise ValueError(f"source: no task {name!r}; known: {', '.join(TASKS)}{nearest(name, TASKS)}")


class Data(Section):
    """source: `pydoc`, `themes`, `file:PATH`, `dir:PATH`, `jsonl:PATH`, `gutenberg:FOLDER`, `wikitext:PATH`,
    `hf:DATASET`, `task:NAME`; all in `kssm_mlx.data.corpora.sources`.

    tokenizer: `bytes`, `chars`, `chars-reserved`, `bpe:SIZE`, `hf:PATH|REPO`, `world:PATH`, `gpt2:PATH`,
    `cl100k:PATH`, `neox:PATH`; of a task always `ids`.
    split: "documents" holds out whole documents, "contiguous" the last `validation` share of the one stream,
    "auto" takes the split that the corpus brings; or documents, when there are at least 20 of them or they
    are books or articles.
    deduplicate: leave out every paragraph that shares 64 bytes with an earlier one, in all documents: what a
    text says twice (licences, headers) else ends up on both sides.
    task: the options of a task, as in `kssm_mlx.data.tasks`, which has its own split.
    """

    source: str = "pydoc"
    tokenizer: str = "bytes"
    split: Literal["auto", "documents", "contiguous"] = "auto"
    validation: float = Field(0.1, gt=0, lt=0.5)
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    deduplicate: bool = False
    task: dict[str, Any] = Field({})

    @model_validator(mode="before")
    @classmethod
    def _tasks_speak_ids(cls, values: Any) -> Any:
        is_task = isinstance(values, dict) and str(values.get("source", "")).startswith(PREFIX)
        return {"tokenizer": "ids", **values} if is_task else values

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
    """family, size and any field of the family's configuration; checked by `kssm_mlx.models.configure`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    family: str = "kssm"
    size: str = "s"

    @property
    def overrides(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def trained_file(self) -> str:
        """The stem of the checkpoint file that holds what is trained."""
        return "model"


class Host(Section):
    """host: a folder, a weight file or a repository, verified beforehand; or "recipe:NAME", which is trained
    here first.

    train: "lora" trains adapters of this `rank` beside the host's wide projections, scaled by alpha / rank;
    "full" trains every parameter; "frozen" trains none of the host's own. graft: phase cores in the host,
    trained in any case, with the options of `kssm_mlx.models.grafts.configs`. verify = false takes a host
    that has not passed `kssm verify-weights`; the run records it.
    """

    host: str = Field(min_length=1)
    train: Literal["lora", "full", "frozen"] = "lora"
    rank: int = Field(8, ge=1, le=2**14)
    alpha: float = Field(16.0, gt=0)
    graft: dict[str, Any] | None = None
    verify: bool = True

    @field_validator("host")
    @classmethod
    def _from_anywhere(cls, host: str) -> str:
        """A path without the folder it was meant in: the run is opened from others."""
        kind = RECIPE if host.startswith(RECIPE) else ""
        path = Path(host.removeprefix(kind)).expanduser()
        there = path.is_file() if kind else path.exists()
        return f"{kind}{path.resolve()}" if there else host

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
        """The recipe that the host is trained by; None for one that exists."""
        return self.host.removeprefix(RECIPE) if self.host.startswith(RECIPE) else None

    @property
    def trained_file(self) -> str:
        """The stem of the checkpoint file that holds what is trained."""
        if self.graft is not None:
            return "graft"
        return "adapters" if self.train == "lora" else "model"


# The two kinds of [model], under names that no key of a recipe has.
MODEL_KINDS = {"(fresh)": Model, "(host)": Host}


def _kind_of_model(value: Any) -> str:
    hosted = isinstance(value, Host) or (isinstance(value, dict) and "host" in value)
    return "(host)" if hosted else "(fresh)"


class Train(Section):
    """Learning rate in units of AdamW; decay, clip and schedule as in training/optim.py and schedules.py.

    decay: "matrices" spares what the model names in `no_decay`; "all" shrinks every parameter, as the
    precursors did. groups: component tag (rwkv, mamba, fusion, ...) -> its own numbers. component_gradients:
    log the gradient of every component, which a model with two kinds of mixer does unasked.
    """

    steps: int = Field(1000, ge=1, le=10**9)
    batch_size: int = Field(16, ge=1, le=2**20)
    context: int = Field(128, ge=2, le=2**24)
    accumulation: int = Field(1, ge=1, le=2**20)
    learning_rate: float = Field(2e-3, gt=0)
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup: int = Field(50, ge=0, le=10**9)
    final_fraction: float = Field(0.1, ge=0, le=1)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    decay: Literal["matrices", "all"] = "matrices"
    groups: dict[str, Group] = Field({})
    component_gradients: bool = False
    clip: float = Field(1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_blocks: bool = False
    hand_off: bool = False
    seed: int = Field(0, ge=0, le=LARGEST_SEED)

    @model_validator(mode="after")
    def _batch_divides(self):
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulation {self.accumulation}; "
                "batch_size counts the rows of one update, accumulation the pieces it is computed in"
            )
        return self


class Eval(Section):
    every: int = Field(200, ge=1, le=10**9)
    tokens: int = Field(65536, ge=256, le=2**40)
    prompt: str = ""
    sample_tokens: int = Field(160, ge=0, le=2**20)
    temperature: float = Field(0.8, ge=0)


class Save(Section):
    every: int = Field(200, ge=1, le=10**9)
    keep: int = Field(3, ge=1, le=10**6)
