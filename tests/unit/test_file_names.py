"""Dates in names of files."""

from __future__ import annotations

import time

import pytest

from streaming_core.file_names import with_dates

NOW = time.struct_time((2026, 3, 9, 7, 5, 2, 0, 68, 0))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("video/%date:yyyy-MM-dd%/x", "video/2026-03-09/x"),
        ("%date:yyyyMMdd_hhmmss%", "20260309_070502"),
        ("%date:d.M.yy% %date:h-m-s%", "9.3.26 7-5-2"),
        ("%date:hh:mm%", "07-05"),
        ("%date:yyyy/MM/dd%/x", "2026/03/09/x"),
        ("video/%year%-%month%", "video/%year%-%month%"),
        ("%width% and 100%", "%width% and 100%"),
        ("plain", "plain"),
    ],
)
def test_dates_are_filled_in_and_other_placeholders_are_left_to_the_host(name, wanted):
    assert with_dates(name, NOW) == wanted
