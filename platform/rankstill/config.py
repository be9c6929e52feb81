"""One frozen configuration tree; configfile.py reads it from YAML."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rankstill.model_config import Distill, Section, Student, Teacher, Train
from rankstill.refresh_config import Refresh
from rankstill.sweep_config import Sweep

Auto = Literal["auto"]
AUTO_BUDGET = {"cpu": 2048, "cuda": 16_384}
"""Padded tokens of a forward pass: few enough for a CPU's caches, and enough to fill a GPU."""
AUTO_BLOCK = {"cpu": 4096, "cuda": 131_072}
"""Pairs in work: seconds of a device."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names under which students are registered."""


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
    seed: int = Field(default=0, ge=0, lt=2**32)
    """The same seed gives the same shop."""


class Data(Section):
    """Judgements and items."""

    sources: tuple[Source, ...] = ()
    """Files of judgements."""
    items: tuple[Source, ...] = ()
    """Files of further items, from which unlabelled pairs are drawn, and judgements of ids alone take their titles."""
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


class Mix(Section):
    """What unlabelled items of a query there are, in proportion."""

    best: float = Field(default=1.0, ge=0)
    """The best by BM25."""
    further: float = Field(default=0.0, ge=0)
    """Any from further down the same ranking."""
    random: float = Field(default=0.0, ge=0)
    """Any at all."""

    @model_validator(mode="after")
    def _some(self) -> "Mix":
        if not self.best + self.further + self.random:
            raise ValueError("best, further and random are all 0; give one of them a share")
        return self

    def quotas(self, count: int) -> tuple[int, int, int]:
        """How many of `count` items are best, further and random ones, by the method of largest remainders."""
        total = self.best + self.further + self.random
        exact = [count * share / total for share in (self.best, self.further, self.random)]
        quotas = [int(share + 1e-9) for share in exact]
        for place in sorted(range(3), key=lambda place: quotas[place] - exact[place])[: count - sum(quotas)]:
            quotas[place] += 1
        return quotas[0], quotas[1], quotas[2]


class Labels(Section):
    """Soft labels."""

    candidates: int = Field(default=0, ge=0)
    """Unlabelled items a training query, found by BM25, that the teacher scores beside the judged ones."""
    mix: Mix = Mix()
    """Which ones."""
    made_queries: int = Field(default=0, ge=0)
    """Further queries, at most one an item: words of its text, which the teacher scores with it and other items."""
    made_candidates: int = Field(default=12, ge=2)
    """Items of each made query, the one that it was made of among them."""
    made_mix: Mix = Mix(best=5, further=4, random=2)
    """Which the others are."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of what is drawn at random for these; `train.seed` leaves them, and so the labels, as they are."""
    token_budget: int | Auto = "auto"  # noqa: S105 (no password)
    """Padded tokens in one forward pass, 64 or more; auto is 2,048 on CPUs and 16,384 on GPUs."""
    block: int | Auto = "auto"
    """Pairs in work at a time, which is what a killed run may have to score again; auto is 4,096 on CPUs and 131,072 on
    GPUs. Each actor's part of them travels to it together, is sorted by length together, and becomes a file; it has as
    many pairs as a forward pass has tokens at least, so that little is padding, unless `block` has fewer."""
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format of the teacher's forward pass; auto is bfloat16 where the device has it, and int8 (ONNX Runtime on
    CPUs) is refused where its scores differ."""
    runtime: Literal["auto", "torch", "openvino"] = "auto"
    """What runs it; auto is OpenVINO on CPUs for models that it can run, and torch elsewhere."""

    @model_validator(mode="after")
    def _room(self) -> "Labels":
        for field, least in (("token_budget", 64), ("block", 1)):
            if (value := getattr(self, field)) != "auto" and value < least:
                raise ValueError(f"{field} is {value}; give {least} or more, or auto")
        return self

    def budget(self, device: str) -> int:
        """`token_budget` on a kind of device."""
        given = self.token_budget
        return AUTO_BUDGET[device.partition(":")[0]] if given == "auto" else given

    def part(self, device: str, actors: int) -> int:
        """Pairs that one of so many actors works through together."""
        block = AUTO_BLOCK[device.partition(":")[0]] if self.block == "auto" else self.block
        return max(min(block, self.budget(device)), block // actors)


EMAIL = r"[^\s@]@[^\s@]+\.[^\s@]"  # not [^\s@]+@, whose search takes the square of the length of a long word
PHONE = r"(\+\d|\(\d|\b\d{2,4}[\s./-]\d)[\d\s()./-]{5,}\d"


class Serve(Section):
    """The ranking endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    replicas: int = Field(default=2, ge=1)
    """Ranker replicas of a version; with `max_replicas`, the fewest."""
    max_replicas: int = Field(default=0, ge=0)
    """Replicas that a version grows to under load; 0 is no more than `replicas`."""
    target_requests: float = Field(default=8.0, gt=0)
    """Requests, under way or waiting, for each replica, which growing and shrinking aims at."""
    runtime: Literal["auto", "torch", "openvino", "onnx"] = "auto"
    """What runs the student's forward pass; auto is OpenVINO for cross-encoders that it can run, torch for students
    that encode items by themselves, and ONNX Runtime for int8, which has nothing else."""
    batch_wait_ms: float = Field(default=1.0, ge=0)
    """How long a replica that has nothing to do waits for more requests to join one that came."""
    token_budget: int = Field(default=2048, ge=64)
    """Tokens of one batch; a larger request is computed in pieces, between which others come."""
    max_wait_ms: float = Field(default=1000.0, gt=0)
    """A request that would have to wait longer than this is answered 429."""
    timeout_ms: float = Field(default=10_000.0, gt=0)
    """Time for one request; callers may allow less (header x-timeout-ms). What is not done by then is dropped."""
    queue: int = Field(default=1000, ge=1)
    """Requests that one replica holds at a time; one more is answered 429."""
    cache_bytes: int = Field(default=256_000_000, ge=0)
    """Bytes of item vectors that a replica remembers, of students that encode items by themselves."""
    index: str = ""
    """Folder of an item index (jobs.index), from which documents that are sent as ids are scored."""
    access_log: str = ""
    """File to which a line of JSON is written for each request, without texts; empty is none."""
    catalogue: str = ""
    """File, folder or URL of items that the page at / searches (BM25)."""
    teacher: str = ""
    """What jobs.evaluate takes as a model, to rank beside the versions on the page; it gets no traffic."""
    max_documents: int = Field(default=10_000, ge=1)
    """Documents a request; more are answered 413."""
    max_body_bytes: int = Field(default=32_000_000, ge=1024)
    """Bytes of a request body; more are answered 413."""
    impressions: int = Field(default=100, ge=0)
    """Items of each answer that are kept, best first, to learn from what shoppers then do; 0 keeps no answers."""
    queries: Literal["keep", "hash", "drop"] = "keep"
    """What of their queries is kept; nothing is learnt from those that are hashed or dropped."""
    hide: tuple[str, ...] = (EMAIL, PHONE)
    """Patterns (regular expressions) of queries that are dropped in any case: e-mail addresses, telephone numbers."""
    swap_rate: float = Field(default=0.0, ge=0, le=1)
    """Share of the answers in which two neighbours are put in random order, which tells how likely positions are to be
    looked at; where they change places, they change scores too."""
    rollback_window: float = Field(default=3600.0, ge=0)
    """Seconds for which a version that lost its traffic stays loaded; the next jobs.deploy after that removes it."""
    keys: str = ""
    """File of API keys (python -m serve.keys); empty asks for none, which only loopback addresses may do."""
    open: bool = False
    """Whether callers of other machines are answered without keys."""

    @model_validator(mode="after")
    def _sound(self) -> "Serve":
        if 0 < self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, fewer than the {self.replicas} replicas; give {self.replicas} or"
                " more, or 0"
            )
        for pattern in self.hide:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"hide: {pattern!r} is no regular expression ({error}); mend or remove it") from error
        if not self.keys and not self.open and not is_loopback(self.host):
            raise ValueError(
                f"host is {self.host!r}, which others can reach, and there are no keys; give keys (made by python -m"
                " serve.keys), or open=true"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which no other can reach."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name
        return False


class Storage(Section):
    """Where everything is kept."""

    root: str = Field(default=".rankstill", min_length=1, pattern=r"^[^\x00]+$")
    """Folder of all outputs: prepared data, teachers, labels, students, artifacts, registry."""
    labels: str = Field(default="", pattern=r"^(\S[^\x00]*)?$")
    """Folder or URL (such as s3://bucket/labels) of the label store; empty is the folder labels of `root`."""
    feedback: str = Field(default="", pattern=r"^(\S[^\x00]*)?$")
    """Folder or URL of what was shown and what shoppers did; empty is the folder feedback of `root`."""

    @field_validator("root")
    @classmethod
    def _home_is_known(cls, value: str) -> str:
        try:
            Path(value).expanduser()
        except RuntimeError as error:
            raise ValueError(f"{error}; give a folder") from error
        return value

    @property
    def folder(self) -> Path:
        """The root as an absolute path."""
        return Path(self.root).expanduser().resolve()

    @property
    def feedback_log(self) -> str:
        """Where impressions and events are."""
        return self.feedback or str(self.folder / "feedback")


class Resources(Section):
    """What a run may use; "auto" takes the GPUs that the cluster has, else CPUs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Kind of device."""
    workers: int | Auto = "auto"
    """Training workers; auto is one a GPU, or one on CPUs."""
    actors: int | Auto = "auto"
    """Labelling actors; auto is as many as the GPUs have room for, or one a CPU."""
    max_actors: int | Auto = "auto"
    """Labelling actors that a cluster which grows may come to; auto is no more than `actors`."""
    actor_gpus: float = Field(default=1.0, gt=0)
    """GPUs of one labelling actor, where there are GPUs; 0.5 lets two share one."""
    price_per_hour: float = Field(default=0.0, ge=0)
    """What the whole cluster costs an hour, in any currency; a dry run then tells what labelling costs."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {} if value == "auto" else value

    @model_validator(mode="after")
    def _positive(self) -> "Resources":
        for field in ("workers", "actors", "max_actors"):
            if (count := getattr(self, field)) != "auto" and count < 1:
                raise ValueError(f"{field} is {count}; give 1 or more, or auto")
        return self


class Config(Section):
    """Everything a run needs to know."""

    name: str = Field(default="shop", pattern=NAME)
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
    train: Train = Train(epochs=3, learning_rate=5e-4, dropout=0.0)
    """The student's training."""
    sweep: Sweep = Sweep()
    """The search for a student."""
    serve: Serve = Serve()
    """The ranking endpoint."""
    refresh: Refresh = Refresh()
    """What becomes of shoppers' feedback."""
    storage: Storage = Storage()
    """Where everything is kept."""
    resources: Resources = Resources()
    """What a run may use."""

    @model_validator(mode="after")
    def _fitting(self) -> "Config":
        if self.teacher.kind != "cross" and (self.student.init == "teacher" or self.distill.features.any):
            what = "student.init is 'teacher'" if self.student.init == "teacher" else "distill.features is set"
            raise ValueError(f"{what}, but teacher.kind is {self.teacher.kind!r}; both need a cross-encoder")
        if self.student.family != "cross" and self.distill.features.any:
            raise ValueError(
                f"distill.features is set, but student.family is {self.student.family!r}, which has other insides than"
                " a teacher; set the weights to 0"
            )
        if self.student.init == "base" and self.teacher.base == "random":
            raise ValueError("student.init is 'base', but teacher.base is 'random'; name a pretrained base")
        return self
