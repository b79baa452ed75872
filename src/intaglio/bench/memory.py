"""The memory that one piece of work in a long-lived worker needed at its peak."""

import re
from pathlib import Path

_PROCESS = Path("/proc/self")
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


class PeakMemory:
    """The highest resident memory of this process since this was made; a later one starts afresh.

    All of the process counts: interpreter, libraries, data and models that are loaded beside what the work itself asks
    for. (`ru_maxrss` won't do: it is the highest of the process's whole life, whatever work that was.)
    """

    def __init__(self) -> None:
        try:
            (_PROCESS / "clear_refs").write_text("5")  # Linux: sets VmHWM back to what is resident now
        except OSError:
            self._started = False
        else:
            self._started = True

    def megabytes(self) -> float | None:
        """The peak so far, in MB of 2**20 bytes, to a tenth; None on systems that can't say."""
        if not self._started:
            return None
        try:
            found = _PEAK.search((_PROCESS / "status").read_text())
        except OSError:
            return None
        return round(int(found[1]) / 1024, 1) if found else None
