"""A server in a process of its own that notes how long its event loop stood still: ``python -m tests.server.loop_watch``.

It prints its port. Each line on stdin is answered with the longest standstill in milliseconds since the line before; at the end
of stdin it ends. The processes that send requests are others, so that nothing but the server holds this one's interpreter.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from ferrum.text.template_process import TemplateProcess
from tests.server.harness import echoes, running, template

TICK_SECONDS = 0.004


class Watch:
    """``longest``: seconds by which a tick came too late, but no more than the processor time that this program took meanwhile:
    what other programs take is none of its doing. Neither clock gives up the interpreter, which a thread might then keep."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        last, worked = time.perf_counter(), time.process_time()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now, busy = time.perf_counter(), time.process_time()
            self.longest = max(self.longest, min(now - last - TICK_SECONDS, busy - worked))
            last, worked = now, busy

    def take(self) -> float:
        longest, self.longest = self.longest, 0.0
        return longest


def main() -> int:
    watch = Watch()
    templates = TemplateProcess({"default": template().source})
    with tempfile.TemporaryDirectory() as folder, templates, running(echoes(), batch_dir=Path(folder)) as server:
        server.state.template = templates  # as a pack's: rendered by a process of its own
        task = server.run(lambda: asyncio.ensure_future(watch.run()))
        print(server.port, flush=True)
        for _ in sys.stdin:
            print(1000 * server.run(watch.take), flush=True)
        server.run(task.cancel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
