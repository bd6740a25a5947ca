"""``ferrum`` as a person sees it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time


class Terminal:
    """A program behind a pseudo-terminal."""

    def __init__(self, *arguments: str, columns: int = 30) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        command = [sys.executable, "-m", "ferrum", *arguments]
        env = {**os.environ, "TERM": "xterm"}
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
        os.close(slave)
        self.text = ""

    def wait_for(self, text: str, count: int = 1) -> None:
        assert self.has(text, count), self.text

    def has(self, text: str, count: int = 1, seconds: float = 60) -> bool:
        """True as soon as ``text`` was written ``count`` times; False when the time is over or the program has ended."""
        deadline = time.monotonic() + seconds
        while self.text.count(text) < count and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.master, 4096).decode(errors="replace")
                except OSError:
                    break
        return self.text.count(text) >= count

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        code = self.process.wait(30)
        os.close(self.master)
        return code
