"""Folders and object stores behind one interface: a filesystem of pyarrow whose root is the folder or URL."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

from pyarrow import ArrowException, fs

from rankstill.errors import ConfigError, in_brief


def open_tree(location: str, field: str, make: bool = False) -> fs.SubTreeFileSystem:
    """The filesystem below a local path or a URL that pyarrow opens (s3://, gs://, hdfs://, file://).

    Credentials and endpoints are those that pyarrow takes from its environment, such as AWS_ACCESS_KEY_ID and
    AWS_ENDPOINT_URL.

    Raises:
        ConfigError: no such filesystem, or the folder can't be reached or made.
    """
    try:
        if "://" in location:
            base, path = fs.FileSystem.from_uri(location)
        else:
            base, path = fs.LocalFileSystem(), str(Path(location).expanduser().absolute())
        there = base.get_file_info(path).type  # which shows whether it can be reached
        if not path or there == fs.FileType.File:
            raise ConfigError(f"{field}: {shown(location)!r} is no folder; give one")
        if make:
            base.create_dir(path, recursive=True)
    except (OSError, ArrowException) as error:
        reason = in_brief(error)
        raise ConfigError(f"{field}: {shown(location)!r} can't be opened ({reason}); give a folder, or a URL with its"
                          " credentials in the environment") from error  # fmt: skip
    return fs.SubTreeFileSystem(path, base)


def below(location: str, name: str) -> str:
    """A folder of a location; options of a URL, behind its question mark, stay at its end."""
    head, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return f"{head.rstrip('/')}/{name}{mark}{options}"


def shown(location: str) -> str:
    """A location without the credentials and options that a URL may have."""
    scheme, mark, rest = location.partition("://")
    if not mark:
        return location.rstrip("/") or "/"
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.rstrip('/')}"


def local_folder(tree: fs.SubTreeFileSystem) -> Path | None:
    """The folder of a local tree."""
    return Path(tree.base_path) if isinstance(tree.base_fs, fs.LocalFileSystem) else None


def write_whole(tree: fs.SubTreeFileSystem, path: str, data: bytes | memoryview) -> None:
    """Write a file that is whole or absent, with the folder that it is in."""
    folder, _, name = path.rpartition("/")
    aside = f"{folder}/.{name}.{uuid4().hex[:8]}" if local_folder(tree) else path  # an object appears when it is whole
    if folder:
        tree.create_dir(folder)
    with tree.open_output_stream(aside) as stream:
        stream.write(data)
    if aside != path:
        tree.move(aside, path)


def read_bytes(tree: fs.SubTreeFileSystem, path: str) -> bytes:
    """All of a file."""
    with tree.open_input_stream(path) as stream:
        return stream.read()


def read_json(tree: fs.SubTreeFileSystem, path: str) -> Any:
    """A JSON file."""
    return json.loads(read_bytes(tree, path))


def is_file(tree: fs.SubTreeFileSystem, path: str) -> bool:
    """Whether a file is there."""
    return tree.get_file_info(path).type == fs.FileType.File


def list_files(tree: fs.SubTreeFileSystem, folder: str, ending: str = "") -> list[str]:
    """Paths of the files in a folder, by name; hidden ones, such as what is being written, left out."""
    found = tree.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return sorted(
        info.path
        for info in found
        if info.type == fs.FileType.File and info.base_name.endswith(ending) and not info.base_name.startswith(".")
    )


def list_folders(tree: fs.SubTreeFileSystem, folder: str) -> list[str]:
    """Names of the folders in a folder."""
    found = tree.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)


def remove_folder(tree: fs.SubTreeFileSystem, folder: str) -> None:
    """Delete a folder with all in it, if it is there."""
    if tree.get_file_info(folder).type == fs.FileType.Directory:
        tree.delete_dir(folder)
