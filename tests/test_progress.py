"""How far a command has come, on a terminal and elsewhere."""

import sys

import pytest

from lal_triton import progress


def work(bar):
    """Two parts of two steps."""
    with bar:
        for part in ("first", "second"):
            bar.set_description_str(part)
            bar.update()
            bar.n += 1


def test_each_part_is_a_line_where_there_is_no_terminal(capsys):
    work(progress.start_bar(4))
    first, second, end = capsys.readouterr().err.splitlines()
    assert first.startswith("first: 0 % done, 00:00 so far, about ? left")
    assert second.startswith("second: 50 % done, 00:00 so far, about 00:00 left")
    assert end.startswith("second: 100 % done")


def test_a_long_part_is_a_line_from_time_to_time(capsys, monkeypatch):
    now = 1000.0
    bar = progress.start_bar(100)
    monkeypatch.setattr(bar, "_time", lambda: now)
    bar.start_t = bar.last_print_t = now
    with bar:
        bar.set_description_str("long")
        for _ in range(50):
            now += 2.0
            bar.update()
        lines = capsys.readouterr().err.splitlines()
    percent = [line.partition(": ")[2].partition(" %")[0] for line in lines]
    assert percent == ["0", "10", "20", "30", "40", "50"]
    assert lines[-1] == "long: 50 % done, 01:40 so far, about 01:40 left"
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    work(progress.start_bar(4))
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "second: 100%|" in shown.rpartition("\r")[2]


def test_what_is_not_to_be_shown_is_not(capsys):
    work(progress.start_bar(4, shown=False))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "about a minute"), (60, "about a minute"), (61, "about 2 minutes"), (600, "about 10 minutes")],
)
def test_times_are_rounded_up_to_minutes(seconds, text):
    assert progress.about(seconds) == text
