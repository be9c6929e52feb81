"""One frozen configuration tree, read from YAML with dotted overrides."""

import copy
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rankstill.errors import ConfigError

Auto = Literal["auto"]


class Section(BaseModel):
    """A part of the tree: frozen, unknown keys refused, one docstring under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Source(Section):
    """One file, folder or URL of judgements or items."""

    path: str
    """Local path or any fsspec URL; .jsonl, .csv, .tsv (each also .gz), .parquet, or a folder of these."""
    name: str = ""
    """What reports call this source; the file's stem where empty."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column names of the file by our names, such as {title: product_name}."""
    label_scale: float = Field(default=1.0, gt=0)
    """Labels are multiplied by this, so that sources with different scales agree."""


class Shop(Section):
    """A generated shop in place of files."""

    items: int = Field(default=2000, ge=1)
    """Number of items."""
    queries: int = Field(default=300, ge=1)
    """Number of queries."""
    candidates: int = Field(default=20, ge=2)
    """Judged items a query, at most."""
    seed: int = Field(default=0, ge=0)
    """The same seed gives the same shop."""


class Data(Section):
    """Judgements and items."""

    sources: tuple[Source, ...] = ()
    """Files of judgements."""
    items: tuple[Source, ...] = ()
    """Files of further items, from which unlabelled pairs are drawn."""
    shop: Shop | None = None
    """A generated shop, where there are no files."""
    fields: tuple[str, ...] = Field(default=("title", "brand", "description"), min_length=1)
    """Item fields that make up the item's text, in this order; a missing one is left out."""
    max_bad_rows: float = Field(default=0.001, ge=0, le=1)
    """Share of rows of one source that may be unusable before the run stops."""
    test: float = Field(default=0.2, ge=0, lt=1)
    """Share of queries held out for the final report, where the rows bring no split."""
    valid: float = Field(default=0.1, ge=0, lt=1)
    """Share of queries held out for choosing, where the rows bring no split."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Data":
        if bool(self.sources) == (self.shop is not None):
            raise ValueError("give either sources (your files) or shop (a generated one), not both or neither")
        if reserved := {"query", "label", "split", "frequency"} & set(self.fields):
            raise ValueError(f"fields has {min(reserved)!r}, which describes no item; name item fields such as title")
        if self.test + self.valid >= 1:
            raise ValueError(f"test + valid is {self.test + self.valid:g}; leave some queries to train on")
        return self


class RandomModel(Section):
    """The shape of a randomly initialised BERT encoder."""

    layers: int = Field(default=2, ge=1)
    """Transformer layers."""
    width: int = Field(default=64, ge=8)
    """Hidden width; a multiple of `heads`."""
    heads: int = Field(default=2, ge=1)
    """Attention heads."""
    vocabulary: int = Field(default=4000, ge=200)
    """Word pieces learnt from the training texts, where there is no other tokenizer."""

    @model_validator(mode="after")
    def _divisible(self) -> "RandomModel":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}; change one of them")
        return self


class Train(Section):
    """One training run: the same loop trains teachers and students."""

    epochs: int = Field(default=2, ge=1)
    """Passes over the candidate lists."""
    lists: int = Field(default=8, ge=1)
    """Candidate lists in one optimizer step, over all workers together."""
    list_size: int = Field(default=12, ge=2)
    """Candidates of one list; a longer list is cut into several, anew each epoch."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches that each worker's share of a step is cut into, to save memory."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW."""
    warmup: float = Field(default=0.06, ge=0, lt=1)
    """Share of the steps in which the rate rises; from there it falls linearly to zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    patience: int = Field(default=2, ge=1)
    """Epochs without a better validation nDCG@10 after which training stops."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: what is sharded over the workers."""
    max_failures: int = Field(default=1, ge=0)
    """Worker failures after which a run gives up; before that it continues at its last checkpoint."""
    seed: int = Field(default=0, ge=0)
    """Seed of initial weights, of shuffling and of sampling."""


class Teacher(Section):
    """The heavy model: ready-made, or an encoder fine-tuned on the judgements."""

    model: str = ""
    """A ready cross-encoder (folder or Hugging Face name) that is used as it is."""
    base: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Encoder to fine-tune (folder or Hugging Face name); "random" for a random one."""
    random: RandomModel = RandomModel()
    """Its shape where `base` is "random"."""
    max_length: int = Field(default=96, ge=8)
    """Tokens of a pair; what is longer is truncated."""
    train: Train = Train(learning_rate=5e-5)
    """How it is fine-tuned."""


class Labels(Section):
    """Soft labels."""

    candidates: int = Field(default=0, ge=0)
    """Unlabelled items a training query, found by BM25, that the teacher scores beside the judged ones."""
    token_budget: int = Field(default=2048, ge=64)
    """Padded tokens in one forward pass."""
    block: int = Field(default=4096, ge=1)
    """Pairs that travel to an actor together and are sorted by length together."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the teacher's forward pass; auto is bfloat16 on a GPU."""


class Student(Section):
    """The small model, a cross-encoder."""

    init: str = "teacher"
    """Where its weights come from: "teacher" (every k-th layer), "random", a folder or a Hugging Face name."""
    layers: int = Field(default=3, ge=1)
    """Layers taken from the teacher."""
    random: RandomModel = RandomModel()
    """Its shape where `init` is "random"."""
    max_length: int = Field(default=96, ge=8)
    """Tokens of a pair; what is longer is truncated."""


class Distill(Section):
    """loss = alpha * T^2 * KL(teacher || student) + (1 - alpha) * listwise + pointwise * BCE."""

    temperature: float = Field(default=1.0, gt=0)
    """Temperature T, by which both sides' scores are divided."""
    alpha: float = Field(default=0.7, ge=0, le=1)
    """Weight of the soft part."""
    pointwise: float = Field(default=0.5, ge=0)
    """Weight of the binary cross-entropy that ties the logits to the scale of labels."""


class Serve(Section):
    """The ranking endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    replicas: int = Field(default=2, ge=1)
    """Ranker replicas."""
    runtime: Literal["torch", "onnx"] = "torch"
    """What runs the student's forward pass."""
    batch_requests: int = Field(default=16, ge=1)
    """Requests that one replica scores together, at most."""
    batch_wait_ms: float = Field(default=2.0, ge=0)
    """How long a replica waits for more requests to join."""
    token_budget: int = Field(default=2048, ge=64)
    """Padded tokens in one forward pass."""
    queue: int = Field(default=200, ge=1)
    """Requests that may wait; one more is answered 429."""
    max_documents: int = Field(default=1000, ge=1)
    """Documents a request; more are answered 413."""
    max_body_bytes: int = Field(default=8_000_000, ge=1024)
    """Bytes of a request body; more are answered 413."""


class Storage(Section):
    """Where everything is kept."""

    root: str = ".rankstill"
    """Folder of all outputs: prepared data, teachers, labels, students, artifacts, registry."""


class Resources(Section):
    """What a run may use; "auto" takes the GPUs that the cluster has, else CPUs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Kind of device."""
    workers: int | Auto = "auto"
    """Training workers; auto is one a GPU, or one on CPUs."""
    actors: int | Auto = "auto"
    """Labelling actors; auto is one a GPU, or one a CPU."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {} if value == "auto" else value

    @model_validator(mode="after")
    def _positive(self) -> "Resources":
        for field in ("workers", "actors"):
            if (count := getattr(self, field)) != "auto" and count < 1:
                raise ValueError(f"{field} is {count}; give 1 or more, or auto")
        return self


class Config(Section):
    """Everything a run needs to know."""

    name: str = Field(default="shop", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name under which students are registered."""
    data: Data
    """Judgements and items."""
    teacher: Teacher = Teacher()
    """The heavy model."""
    labels: Labels = Labels()
    """Soft labels."""
    student: Student = Student()
    """The small model."""
    distill: Distill = Distill()
    """The student's loss."""
    train: Train = Train(epochs=3, learning_rate=2e-4)
    """The student's training."""
    serve: Serve = Serve()
    """The ranking endpoint."""
    storage: Storage = Storage()
    """Where everything is kept."""
    resources: Resources = Resources()
    """What a run may use."""


def load_config(origin: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or take a tree of plain values, and apply `dotted.key=value` overrides (values are YAML too).

    Raises:
        ConfigError: an unreadable file, an unknown key, a value of the wrong type or out of range.

    """
    tree = copy.deepcopy(origin) if isinstance(origin, dict) else _read_tree(origin)
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree)


def _read_tree(path: str | Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {str(path)!r}: {error.strerror}; give a readable YAML file") from error
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2020-13-45 is a ValueError
        raise ConfigError(f"--config {str(path)!r}: not valid YAML ({_one_line(error)}); mend the file") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"--config {str(path)!r}: holds no mapping; start from jobs/configs/shop.yaml")
    return tree


def parse_config(tree: dict[str, Any]) -> Config:
    """Validate a tree of plain values; raises ConfigError that names the first field at fault."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(_explain(first["loc"], first)) from None


def dump_config(config: Config) -> str:
    """The whole resolved tree as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def describe_fields(
    model: type[BaseModel] = Config, prefix: str = "", given: BaseModel | None = None
) -> Iterator[tuple[str, str, str]]:
    """Each setting as (dotted key, default, meaning), in the order of the tree; `given` holds a section's defaults."""
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        default: Any = getattr(given, name, None)
        if given is None and not field.is_required():
            default = field.get_default(call_default_factory=True)
        if section is not None:
            list_mark = ".0" if typing.get_origin(field.annotation) is tuple else ""
            own = default if isinstance(default, Section) else None
            yield from describe_fields(section, f"{prefix}{name}{list_mark}.", own)
        else:
            yield f"{prefix}{name}", "" if field.is_required() else repr(default), field.description or ""


def _section_of(annotation: Any) -> type[Section] | None:
    """The section inside an annotation such as `Shop | None` or `tuple[Source, ...]`."""
    inner = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (tuple, types.UnionType, typing.Union)
        else (annotation,)
    )
    return next((part for part in inner if isinstance(part, type) and issubclass(part, Section)), None)


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key of a plain tree; list positions are numbers."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"argument {override!r}: not of the form dotted.key=value; write e.g. train.epochs=2")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{key}={text!r}: the value is not valid YAML ({_one_line(error)}); quote it") from error
    node: Any = tree
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(node, list):
            node = node[_position(node, part, key)]
        else:
            if node.get(part) in (None, "auto"):  # as in `resources: auto`
                node[part] = {}
            node = node[part]
        if not isinstance(node, dict | list):
            raise ConfigError(f"{key}: {part!r} holds the value {node!r}, which has no parts; drop what follows it")
    if isinstance(node, list):
        node[_position(node, last, key)] = value
    else:
        node[last] = value


def _position(items: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(f"{key}: {part!r} is no position in a list of {len(items)}; count from 0")
    return int(part)


def _explain(location: tuple[int | str, ...], error: Any) -> str:
    """One line for the first validation error: field, value, remedy."""
    location = _as_written(location)
    dotted = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.0)
        return f"config key {dotted!r} is unknown; did you mean {'.'.join([*map(str, location[:-1]), *near])!r}?"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"config key {dotted!r} is missing; add it (`--help` lists every key)"
    value = error["input"]
    shown = "" if isinstance(value, dict) else f" has the value {value!r}"
    return f"config key {dotted or 'top level'!r}{shown}: {message[0].lower()}{message[1:]}"


def _as_written(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A pydantic location without the names of union members, which no user wrote."""
    section: type[Section] | None = Config
    for place, part in enumerate(location[:-1]):
        if isinstance(part, str):
            field = section.model_fields.get(part) if section else None
            if field is None:
                return location
            section = _section_of(field.annotation)
            if section is None and place + 2 == len(location) and location[-1] in ("int", "literal['auto']"):
                return location[:-1]
    return location


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at `location`."""
    section: type[Section] = Config
    for part in location:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
