"""The runtime's API process as it is, before an engine that is `bench.stand_in`.

`python -m bench.api_process STEPS_PER_S REPORT CORE OTHER_CORE OPTIONS...`: what follows are the runtime's own options.
It differs from `python -m dedicate_runtime` in what is started behind the socket, and on which core each runs.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from functools import partial

from dedicate_runtime.__main__ import run
from dedicate_runtime.core.config import EngineConfig
from dedicate_runtime.engine.client import EngineClient
from dedicate_runtime.engine.supervisor import EngineSupervisor


async def _start_stand_in(config: EngineConfig, *, steps_per_s: str, report: str, core: int) -> EngineClient:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "bench.stand_in", str(theirs.fileno()), steps_per_s, config.model, report]
        process = await asyncio.create_subprocess_exec(
            *command, pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
    os.sched_setaffinity(process.pid, {core})
    return await EngineClient.connect(ours, config, process=process)


def main() -> int:
    """Runs the API process until a signal ends it."""
    steps_per_s, report, core, other_core, *options = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    start = partial(_start_stand_in, steps_per_s=steps_per_s, report=report, core=int(other_core))

    async def start_supervised(config: EngineConfig, *, stall_s: float) -> EngineSupervisor:
        return EngineSupervisor(await start(config), config, stall_s=stall_s, start=start)

    return run(options, start_supervised)


if __name__ == "__main__":
    sys.exit(main())
