"""How many processors a worker may use: threads beyond that wait for each other.

Ray gives every worker one thread (`OMP_NUM_THREADS`), and a container that may use 4 processors' time of a machine's 64
sees all 64.
"""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def processors(cgroup: Path = CGROUP) -> int:
    """Those that this process may run on, and no more than its container may use the time of; at least one."""
    allowed = len(os.sched_getaffinity(0))
    share = _share(cgroup)
    return allowed if share is None else max(1, min(allowed, int(share)))


def _share(cgroup: Path) -> float | None:
    """Seconds of processors a second, by the rules of Linux's control groups, version 2 or 1; None without a limit."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        # 'max', or -1
        return float(quota) / float(period) if quota.strip().isdecimal() else None
    except (OSError, ValueError):
        return None
