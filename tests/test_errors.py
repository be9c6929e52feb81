import pytest

from rankstill.errors import in_brief


@pytest.mark.parametrize("most", [50, 51, 200])
def test_a_long_error_is_told_by_how_it_begins_and_ends(most):
    said = "can't open /" + "folder" * 100 + ": no such file"
    told = in_brief(OSError(said), most)
    assert len(told) in (most - 1, most)
    begin, end = told.split(" … ")
    assert said.startswith(begin)
    assert said.endswith(end)
    assert begin.startswith("can't open")
    assert end.endswith("no such file")


def test_a_short_error_is_told_whole_on_one_line_and_a_silent_one_by_its_name():
    assert in_brief(ValueError("two\n  lines")) == "two lines"
    assert in_brief(ValueError("x" * 200)) == "x" * 200
    assert in_brief(MemoryError()) == "MemoryError"
