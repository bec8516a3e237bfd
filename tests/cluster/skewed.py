"""Runs the operator with a wall clock that is so many seconds off: `python skewed.py 3600`."""

import datetime  # noqa: ICN001 - this module replaces what is in it
import runpy
import sys
import time

_SKEW_S = float(sys.argv.pop(1))
_read_time = time.time


class _Skewed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=_SKEW_S)


datetime.datetime = _Skewed
time.time = lambda: _read_time() + _SKEW_S
runpy.run_module("dedicate_operator", run_name="__main__", alter_sys=True)
