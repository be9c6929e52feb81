"""Names, versions and aliases of exported students, in an MLflow model registry (SQLite unless told otherwise)."""

import os
from dataclasses import dataclass
from pathlib import Path

from rankstill.errors import ModelError
from rankstill.storage import make_root

CHAMPION, CHALLENGER = "champion", "challenger"
FILE = Path("registry", "mlflow.db")
"""The registry under a storage root."""


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


class Registry:
    """The registry under a storage root; MLFLOW_TRACKING_URI, where set, names another one."""

    def __init__(self, root: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        from mlflow import MlflowClient  # slow to import, and only commands that need a registry should wait

        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{make_root(root / FILE.parent) / FILE.name}"
        self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def register(self, name: str, folder: Path, tags: dict[str, str]) -> Version:
        """Register an artifact as the name's next version and challenger, and as champion if there is none.

        An artifact that is registered under the name already keeps its version.
        """
        from mlflow.exceptions import MlflowException

        source = str(folder.resolve())
        try:
            self._client.get_registered_model(name)
        except MlflowException:
            self._client.create_registered_model(name)
        known = [v for v in self._client.search_model_versions(f"name='{name}'") if v.source == source]
        version = known[0] if known else self._client.create_model_version(name, source, tags=tags)
        self._client.set_registered_model_alias(name, CHALLENGER, version.version)
        if CHAMPION not in self._client.get_registered_model(name).aliases:
            self._client.set_registered_model_alias(name, CHAMPION, version.version)
        return self.resolve(f"{name}/{version.version}", "registry")

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
            raise ModelError(f"{field}: no {reference!r} in the registry {self.uri}; {self._hint()}") from error
        folder = Path(str(found.source))
        if not folder.is_dir():
            raise ModelError(f"{field}: the files of {reference!r} are gone from {found.source!r}; register it again")
        return Version(name, int(found.version), folder, tuple(aliases))

    def _hint(self) -> str:
        names = [model.name for model in self._client.search_registered_models()]
        return f"it has {', '.join(sorted(names))}" if names else "it is empty, run jobs.pipeline first"


def find_version(reference: str, root: Path, field: str) -> Version | None:
    """The registered version that a reference means; None where it isn't one, or where a folder has that name.

    Leaves no empty registry behind where there is none.

    Raises:
        ModelError: no registry, no such name, alias or number, or its files are gone.
    """
    if not is_reference(reference) or Path(reference).exists():
        return None
    if "MLFLOW_TRACKING_URI" not in os.environ and not (root / FILE).exists():
        raise ModelError(
            f"{field}: {str(root)!r} has no registry to find {reference!r} in; run jobs.pipeline first,"
            " or set storage.root"
        )
    return Registry(root).resolve(reference, field)


def is_reference(text: str) -> bool:
    """Whether a model reference has the form NAME@ALIAS or NAME/NUMBER."""
    name, _, number = text.rpartition("/")
    return ("@" in text and "/" not in text) or (bool(name) and "/" not in name and number.isdigit())
