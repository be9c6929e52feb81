"""Names, versions and aliases of exported students, in an MLflow model registry (SQLite unless told otherwise)."""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rankstill.errors import ConfigError, ModelError, in_brief
from rankstill.storage import make_root

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
FILE = Path("registry", "mlflow.db")
"""The registry under a storage root."""


MLFLOW_LENGTH, MLFLOW_BATCH = 5000, 100
"""Characters of a value and entries of a call that MLflow takes."""
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # by default it tries for minutes
}


@dataclass(frozen=True)
class Record:
    """How a student came to be, for those who look with MLflow."""

    title: str
    params: Mapping[str, Any]
    epochs: Sequence[Mapping[str, float]]
    """Metrics of each epoch."""
    tags: Mapping[str, Any]
    """Where it comes from: keys of data, labels, teacher; commit; versions."""
    status: Literal["FINISHED", "KILLED", "FAILED"] = "FINISHED"


@dataclass(frozen=True)
class Version:
    """One registered model version."""

    name: str
    number: int
    folder: Path
    """Its artifact."""
    aliases: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"


NEWEST = 3
"""Versions that a message names."""


class Registry:
    """The registry under a storage root; MLFLOW_TRACKING_URI, where set, names another one.

    Raises:
        ConfigError: it can't be reached.
    """

    def __init__(self, root: Path) -> None:
        for name, value in MLFLOW_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # slow to import, and only commands that need a registry should wait
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        folder = make_root(root / FILE.parent)
        self._lock = folder / "lock"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / FILE.name}"
        try:
            with self._alone():  # or two that come first both make the tables
                self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                self._client.search_registered_models(max_results=1)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = in_brief(error)
            raise ConfigError(
                f"the registry {self.uri} can't be used ({reason}); see to it, or name another with MLFLOW_TRACKING_URI"
            ) from error

    def register(
        self,
        name: str,
        folder: Path,
        tags: Mapping[str, str],
        record: Record | None = None,
        challenger: bool = True,
    ) -> Version:
        """Register an artifact as the name's next version and, unless told otherwise, challenger; and as champion if
        there is none.

        `record` becomes the MLflow run that the version comes from. An artifact that is registered under the name
        already keeps its version.
        """
        from mlflow.exceptions import MlflowException

        source = str(folder.resolve())
        with self._alone():
            try:
                self._client.get_registered_model(name)
            except MlflowException:
                self._client.create_registered_model(name)
            known = [v for v in self._client.search_model_versions(f"name='{name}'") if v.source == source]
            if known:
                version = known[0]
            else:
                run = self._log(name, record) if record else None
                version = self._client.create_model_version(name, source, run_id=run, tags=dict(tags))
            if challenger:
                self._client.set_registered_model_alias(name, CHALLENGER, version.version)
            if CHAMPION not in self._client.get_registered_model(name).aliases:
                self._client.set_registered_model_alias(name, CHAMPION, version.version)
        return self.resolve(f"{name}/{version.version}", "registry")

    def note(self, version: Version, tags: Mapping[str, Any]) -> None:
        """Write down what became of a version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(version.name, str(version.number), key, str(value)[:MLFLOW_LENGTH])

    def notes(self, version: Version) -> dict[str, str]:
        """What was written down of a version."""
        return dict(self._client.get_model_version(version.name, str(version.number)).tags)

    def record(self, name: str, record: Record) -> None:
        """Log what was not registered, unless the name has a run of that title."""
        with self._alone():
            titled = f"attributes.run_name = '{record.title}'"
            if not self._client.search_runs([self._experiment(name)], titled, max_results=1):
                self._log(name, record)

    def _experiment(self, name: str) -> str:
        """Id of the MLflow experiment that holds a name's runs."""
        experiment = self._client.get_experiment_by_name(name)
        return experiment.experiment_id if experiment else self._client.create_experiment(name)

    def _log(self, name: str, record: Record) -> str:
        """An MLflow run with a record's parameters, metrics by epoch and tags; returns its id."""
        from mlflow.entities import Metric, Param, RunTag

        run = self._client.create_run(self._experiment(name), run_name=record.title).info.run_id
        now = int(time.time() * 1000)
        metrics = [
            Metric(key.replace("@", "_at_"), value, now, int(epoch.get("epoch", 0)))
            for epoch in record.epochs
            for key, value in epoch.items()
            if key != "epoch"
        ]
        params = [Param(key, str(value)[:MLFLOW_LENGTH]) for key, value in record.params.items()]
        tags = [RunTag(key, str(value)[:MLFLOW_LENGTH]) for key, value in record.tags.items()]
        for start in range(0, len(params), MLFLOW_BATCH):
            self._client.log_batch(run, params=params[start : start + MLFLOW_BATCH])
        for start in range(0, len(metrics), MLFLOW_BATCH):
            self._client.log_batch(run, metrics=metrics[start : start + MLFLOW_BATCH])
        self._client.log_batch(run, tags=tags)
        self._client.set_terminated(run, record.status)
        return run

    def promote(self, reference: str, field: str) -> tuple[Version, Version]:
        """Make a version its name's champion; returns it and the champion before it, which `rollback` brings back.

        Raises:
            ModelError: no such version, or its files are gone.
        """
        with self._alone():
            version = self.resolve(reference, field)
            before = self.resolve(f"{version.name}@{CHAMPION}", field)
            if before.number != version.number:
                self._client.set_registered_model_alias(version.name, PREVIOUS, str(before.number))
                self._client.set_registered_model_alias(version.name, CHAMPION, str(version.number))
        return self.resolve(f"{version.name}/{version.number}", field), before

    def previous(self, name: str, field: str) -> Version:
        """The champion before this one.

        Raises:
            ModelError: no such name, there was none, or its files are gone.
        """
        self.resolve(f"{name}@{CHAMPION}", field)
        aliases = {alias for version in self.versions(name) for alias in version.aliases}
        if PREVIOUS not in aliases:
            raise ModelError(f"{field}: {name!r} has had one champion only; promote another version first")
        return self.resolve(f"{name}@{PREVIOUS}", field)

    def versions(self, name: str = "") -> list[Version]:
        """All versions, of one name or of all, in order."""
        names = [name] if name else sorted(model.name for model in self._client.search_registered_models())
        found = []
        for one in names:
            entries = self._client.search_model_versions(f"name='{one}'")
            aliases = [self._client.get_model_version(one, entry.version).aliases for entry in entries]
            found += [
                Version(one, int(entry.version), Path(str(entry.source)), tuple(own))
                for entry, own in zip(entries, aliases, strict=True)
            ]
        return sorted(found, key=lambda version: (version.name, version.number))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process of this host changes the registry at a time: looking and writing are two steps."""
        with self._lock.open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def resolve(self, reference: str, field: str) -> Version:
        """The version that NAME@ALIAS or NAME/NUMBER stands for.

        Raises:
            ModelError: no such name, alias or number, or its files are gone.

        """
        from mlflow.exceptions import MlflowException

        name, mark, rest = reference.partition("@")
        try:
            if mark:
                found = self._client.get_model_version_by_alias(name, rest)
            else:
                name, _, rest = reference.rpartition("/")
                found = self._client.get_model_version(name, rest)
            aliases = self._client.get_model_version(name, found.version).aliases
        except MlflowException as error:
            raise ModelError(
                f"{field}: no {reference!r} in the registry {self.uri}; {self._hint(reference)}"
            ) from error
        folder = Path(str(found.source))
        if not folder.is_dir():
            raise ModelError(f"{field}: the files of {reference!r} are gone from {found.source!r}; register it again")
        return Version(name, int(found.version), folder, tuple(aliases))

    def _hint(self, reference: str) -> str:
        """What there is in place of a reference."""
        names = sorted(model.name for model in self._client.search_registered_models())
        for name in names:
            if reference == name or reference.startswith((f"{name}@", f"{name}/")):
                versions = self.versions(name)
                aliases = sorted(f"{name}@{alias}" for one in versions for alias in one.aliases)
                older = " or older ones" if len(versions) > NEWEST else ""
                return f"name one of {', '.join([*aliases, *map(str, versions[-NEWEST:])])}{older}"
        return f"it has {', '.join(names)}" if names else "it is empty, run jobs.pipeline first"


def find_version(reference: str, root: Path, field: str) -> Version | None:
    """The registered version that a reference means; None where it isn't one, or where a folder has that name.

    Leaves no empty registry behind where there is none.

    Raises:
        ModelError: no registry, no such name, alias or number, or its files are gone.
    """
    if not is_reference(reference) or Path(reference).exists():
        return None
    return open_registry(root, reference, field).resolve(reference, field)


def open_registry(root: Path, wanted: str, field: str = "registry") -> Registry:
    """The registry of a storage root, which must be there: nothing is left behind where there is none.

    Raises:
        ModelError: there is none, to find in it what is `wanted`, if that is named.
    """
    if "MLFLOW_TRACKING_URI" not in os.environ and not (root / FILE).exists():
        sought = f" to find {wanted!r} in" if wanted else ""
        raise ModelError(
            f"{field}: {str(root)!r} has no registry{sought}; run jobs.pipeline first, or set storage.root"
        )
    return Registry(root)


def is_reference(text: str) -> bool:
    """Whether a model reference has the form NAME@ALIAS or NAME/NUMBER."""
    name, _, number = text.rpartition("/")
    return ("@" in text and "/" not in text) or (bool(name) and "/" not in name and number.isdigit())
