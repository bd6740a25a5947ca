"""What ``serve`` was asked for, checked once before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ferrum.errors import FerrumError
from ferrum.server.origins import check_origins, is_loopback

MIN_KEY_CHARS = 8  # of a key that others can try
LOG_FORMATS = ("text", "json")
BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """One server. Zeros mean "choose": threads and KV memory from the machine, lengths from the pack.

    ``api_key``: empty means that no key is asked for. ``kv_cache_memory``: bytes. ``served_model_name``: the name that
    requests must give; empty takes the pack's. ``drain_seconds``: how long running requests may go on after SIGTERM.
    ``insecure``: allow an address that others can reach without a key. ``pid_file``: written once the server accepts
    requests, removed at its end. ``max_queue``: sequences that may wait. ``quiet``: print nothing on start.
    ``allowed_origins``: pages beside this machine's own that may use the server, as in ``origins``. ``verbose`` above 0, or
    ``log_format`` json: a line on stderr for each request. ``batch_dir``: where files and batches are kept; None keeps none.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = field(default="", repr=False)
    max_num_seqs: int = 16
    max_model_len: int = 0
    max_num_batched_tokens: int = 512
    kv_cache_memory: int = 0
    enable_prefix_caching: bool = True
    served_model_name: str = ""
    drain_seconds: float = 30.0
    insecure: bool = False
    num_threads: int = 0
    trust: bool = False
    device: str = "auto"
    pid_file: Path | None = None
    max_queue: int = 256
    max_connections: int = 1024
    max_connections_per_address: int = 0
    max_body_bytes: int = 8 * 1024 * 1024
    quiet: bool = False
    allowed_origins: tuple[str, ...] = ()
    verbose: int = 0
    log_format: str = "text"
    batch_dir: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise FerrumError("bad-option", f"{self.port} is not a port", "--port", "give a number from 0 to 65535")
        for name, low in _SMALLEST.items():
            if getattr(self, name) < low:
                raise FerrumError("bad-option", f"must be at least {low}", "--" + name.replace("_", "-"))
        if not self.api_key.isascii() or not self.api_key.isprintable() or self.api_key.strip() != self.api_key:
            raise FerrumError("bad-option", "the key must be printable ASCII", "--api-key", "choose a random key")
        if self.api_key and len(self.api_key) < MIN_KEY_CHARS and not is_loopback(self.host):
            what = f"on an address that others can reach, the key must have at least {MIN_KEY_CHARS} characters"
            raise FerrumError("bad-option", what, "--api-key", "choose a longer random key")
        if self.log_format not in LOG_FORMATS:
            raise FerrumError("bad-option", f"{self.log_format} is not a format", "--log-format", "use text or json")
        object.__setattr__(self, "allowed_origins", check_origins(self.allowed_origins))
        if not self.api_key and not self.insecure and not is_loopback(self.host):
            what = "an address that others can reach needs a key"
            raise FerrumError("no-api-key", what, f"--host {self.host}", "give --api-key, or --insecure to allow everyone")


_SMALLEST: dict[str, float] = {
    "max_num_seqs": 1,
    "max_model_len": 0,
    "max_num_batched_tokens": 1,
    "kv_cache_memory": 0,
    "drain_seconds": 0,
    "num_threads": 0,
    "max_queue": 1,
    "max_connections": 1,
    "max_connections_per_address": 0,
    "max_body_bytes": 1024,
}
