import errno
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from rankstill.cli import add_config_arguments, format_table, make_parser, present_token, run_command
from rankstill.errors import AddressError, ConfigError, DataError, InputError, ModelError, RankstillError, RunError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("no such thing"), 2),
        (ConfigError("no such thing"), 2),
        (DataError("no such thing"), 2),
        (ModelError("no such thing"), 2),
        (AddressError("no such thing"), 2),
        (RunError("no such thing"), 1),
        (RankstillError("no such thing"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_on_purpose_is_one_line_and_a_code(capsys, error, code):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    assert exit_.value.code == code
    assert capsys.readouterr() == ("", "error: no such thing\n")


def test_done_is_code_zero_and_says_nothing(capsys):
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: None)
    assert exit_.value.code == 0
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_says_that_the_work_is_kept(capsys):
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    assert exit_.value.code == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_an_error_that_nobody_foresaw_keeps_its_trace():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file"), "no space left on device (/a/file)"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left on device"),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), "database or disk is full"),
    ],
)
def test_a_full_disk_is_one_line_whoever_meets_it(capsys, error, said):
    def main() -> None:
        raise ValueError("not written") from error

    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    assert exit_.value.code == 1
    assert capsys.readouterr() == ("", f"error: {said}; make room and run again, which continues where this stopped\n")


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError, AddressError, RunError])
def test_errors_survive_the_way_between_processes(kind):
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        error = pool.submit(kind, "field: value; remedy").result()
    assert type(error) is kind
    assert str(error) == "field: value; remedy"
    assert error.exit_code == kind.exit_code


def test_errors_are_what_the_standard_library_would_raise_too():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(DataError, ValueError)
    assert issubclass(ModelError, ValueError)
    assert issubclass(AddressError, OSError)
    assert issubclass(RunError, RuntimeError)
    assert not issubclass(RunError, InputError)


def test_overrides_are_positional_and_the_config_is_required(capsys):
    parser = make_parser("jobs.thing", "Does a thing.")
    add_config_arguments(parser)
    found = parser.parse_args(["--config", "a.yaml", "train.epochs=1", "name=x"])
    assert (found.config, found.overrides) == ("a.yaml", ["train.epochs=1", "name=x"])
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(["train.epochs=1"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "--config" in error
    assert error.count("\n") == 1


def test_help_lists_every_setting():
    parser = make_parser("jobs.thing", "Does a thing.", "An example.")
    add_config_arguments(parser)
    text = parser.format_help()
    assert text.startswith("usage: python -m jobs.thing")
    assert "An example." in text
    for key in ("data.sources.0.path", "teacher.train.learning_rate", "distill.temperature", "serve.port"):
        assert f"\n  {key}" in text


def test_a_table_is_aligned():
    table = format_table([["model", "nDCG@10", "note"], ["teacher", "0.9", "a"], ["x", "-", "longer"]])
    assert table.splitlines() == [
        "model    nDCG@10  note",
        "-------  -------  ------",
        "teacher      0.9  a",
        "x              -  longer",
    ]


def test_a_table_of_a_header_alone():
    assert format_table([["model", "n"]]).splitlines()[0] == "model  n"


@pytest.mark.parametrize(("has", "before", "after"), [(True, None, "token"), (False, None, None), (True, "x", "x")])
def test_rays_token_is_presented_where_there_is_one(tmp_path, monkeypatch, has, before, after):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", before or "")
    if before is None:
        monkeypatch.delenv("RAY_AUTH_MODE")
    if has:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
    present_token()
    assert os.environ.get("RAY_AUTH_MODE") == after
