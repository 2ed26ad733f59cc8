"""Dates in names of files, as ComfyUI's page writes them: `%date:yyyy-MM-dd%`."""

from __future__ import annotations

import re
import time

_DATE = re.compile(r"%date:([^%]*)%")
_PART = re.compile(r"d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|y{1,4}")
_FORBIDDEN = re.compile(r'[:*?"<>|\\]')
"""What Windows does not allow in a name."""


def with_dates(name: str, now: time.struct_time) -> str:
    """`name` with every `%date:FORMAT%` filled in.

    In a format, d, M, y, h, m and s are day, month, year, hour (0 to 23), minute and second, doubled with a zero in
    front; yy and yyyy are years of two and four digits. Characters that not every system allows become `-`.
    """
    return _DATE.sub(lambda date: _FORBIDDEN.sub("-", _PART.sub(lambda part: _value(part[0], now), date[1])), name)


def _value(part: str, now: time.struct_time) -> str:
    if part[0] == "y":
        return {"yy": f"{now.tm_year % 100:02}", "yyyy": str(now.tm_year)}.get(part, part)
    value = {"d": now.tm_mday, "M": now.tm_mon, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}[part[0]]
    return str(value).zfill(len(part))
