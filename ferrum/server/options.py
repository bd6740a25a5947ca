"""What ``serve`` was asked for, checked once before anything starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ferrum.errors import FerrumError
from ferrum.server.keys import Key, check_key
from ferrum.server.origins import check_origins, is_loopback

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
    ``named_keys``: beside ``api_key``. ``socket``: the path of a unix socket to listen on instead of ``host`` and ``port``.
    ``root_path``: under which a proxy shows the server. ``otlp_endpoint``: where traces go.
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
    named_keys: tuple[Key, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    socket: str = ""
    root_path: str = ""
    otlp_endpoint: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise FerrumError("bad-option", f"{self.port} is not a port", "--port", "give a number from 0 to 65535")
        for name, low in _SMALLEST.items():
            if getattr(self, name) < low:
                raise FerrumError("bad-option", f"must be at least {low}", "--" + name.replace("_", "-"))
        for key in self.keys:
            check_key(key, f"[{key.name}] of --api-key-file" if key.name else "--api-key", reachable=not self.is_private)
        if bool(self.tls_cert) != bool(self.tls_key):
            raise FerrumError("bad-option", "a certificate needs its key", "--tls-cert and --tls-key", "give both")
        if self.root_path and not _ROOT_PATH.fullmatch(self.root_path):
            raise FerrumError("bad-option", f"{self.root_path} is not a path", "--root-path", "give /name, without a last /")
        if self.log_format not in LOG_FORMATS:
            raise FerrumError("bad-option", f"{self.log_format} is not a format", "--log-format", "use text or json")
        object.__setattr__(self, "allowed_origins", check_origins(self.allowed_origins))
        if not self.keys and not self.insecure and not self.is_private:
            what = "an address that others can reach needs a key"
            raise FerrumError("no-api-key", what, f"--host {self.host}", "give --api-key, or --insecure to allow everyone")

    @property
    def keys(self) -> tuple[Key, ...]:
        """All of them; none means that everybody may ask."""
        return (*((Key(secret=self.api_key),) if self.api_key else ()), *self.named_keys)

    @property
    def is_private(self) -> bool:
        """Whether only this machine can reach the server."""
        return bool(self.socket) or is_loopback(self.host)


_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
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
