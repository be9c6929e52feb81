"""What a registered version was made from, link by link, down to the files of labels."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rankstill.artifacts import load_artifact
from rankstill.errors import DamagedError, InputError
from rankstill.label_files import StoredFile, stored_file
from rankstill.labels import LabelStore, open_store
from rankstill.registry import Version


@dataclass(frozen=True)
class Link:
    """One part of a version's history."""

    what: str
    where: str
    state: str
    """What was found: verified, there, gone, or what is wrong with it."""

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return self.state.startswith(("verified", "there", "known"))


def lineage(root: Path, version: Version) -> Iterator[Link]:
    """The chain from a version to its data; artifact and label files are held against their hashes.

    Raises:
        ModelError: the version's files are no artifact, or not what its manifest says.
    """
    artifact = load_artifact(version.folder, str(version))
    made = artifact.manifest["made_from"]
    hashes = len(artifact.manifest["files"])
    yield Link(f"version {version}", str(version.folder), f"verified, {hashes} files, {artifact.precision}")
    commit = made.get("git_commit") or "outside a checkout"
    versions = ", ".join(f"{name} {number}" for name, number in artifact.manifest["versions"].items())
    yield Link("code", commit, f"known, {versions}")
    yield _folder("student", root / "students" / made["student"])
    lists = root / "lists" / made["lists"]
    yield _folder("candidate lists", lists)
    if (lists / "labels.json").is_file():
        stores: dict[str, list[str]] = json.loads((lists / "labels.json").read_text(encoding="utf-8"))
        if not any(where.endswith(made["teacher_fingerprint"]) for where in stores):
            yield Link("labels", ", ".join(stores), f"of another teacher than {made['teacher_fingerprint']}")
        for where, runs in stores.items():
            yield from _labels(where, runs)
    taught = [root / kind / made["teacher"] for kind in ("ensembles", "teachers")]
    yield _folder("teacher", next((folder for folder in taught if folder.is_dir()), taught[-1]))
    yield _folder("data", root / "data" / made["data"])


def _folder(what: str, folder: Path) -> Link:
    return Link(what, str(folder), "there" if folder.is_dir() else "gone")


def _labels(where: str, runs: list[str]) -> Iterator[Link]:
    """The commits of a label store that lists were made from, and their files."""
    try:
        store = open_store(where)
        teacher = store.teacher
        every = store.commits(replaced=True)
    except (InputError, DamagedError) as error:
        yield Link("labels", where, str(error))
        return
    yield Link("label store", where, f"there, of {teacher.get('kind', '?')} model {teacher.get('folder', '?')}")
    standing = {commit.run: commit for commit in every}
    merged = {old: commit for commit in every for old in commit.replaces}
    for run in runs:
        commit = merged.get(run, standing.get(run))
        if commit is None:
            yield Link("labels", run, "gone")
            continue
        named = run if commit.run == run else f"{run}, merged into {commit.run}"
        for file in commit.files:
            yield Link(f"labels of {named}", file.path, _checked(store, file))


def _checked(store: LabelStore, file: StoredFile) -> str:
    """Whether a file is as its commit says."""
    try:
        if stored_file(store.tree, file.path) == file:
            return f"verified, {file.rows:,} rows, sha256 {file.sha256[:16]}"
    except FileNotFoundError:
        return "gone"
    except (OSError, ValueError):  # pyarrow's errors are these
        return "can't be read"
    return "changed since it was committed"
