"""``ferrum serve``: an OpenAI-compatible server; a model without a pack is pulled and compiled first."""

from __future__ import annotations

import argparse
from pathlib import Path

from ferrum.cli.arguments import add_compile_choices, add_load_choices, add_model, find_pack
from ferrum.cli.options import byte_size, comma_list, non_negative, port, positive
from ferrum.cli.stop import pid_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_compile_choices(parser)
    add_load_choices(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    add("-p", "--port", type=port, default=8000, help="port to listen on (default 8000)")
    add("--api-key", default="", metavar="KEY", help="key that requests must carry; FERRUM_API_KEY keeps it out of process lists")
    add("--api-key-file", default="", metavar="FILE", help="several keys with names and limits: a TOML table for each")
    add("--socket", default="", metavar="PATH", help="listen on a unix socket, which only this user can reach, instead of a port")
    add("--tls-cert", default="", metavar="FILE", help="speak TLS with this certificate chain (PEM)")
    add("--tls-key", default="", metavar="FILE", help="the certificate's private key (PEM)")
    add("--root-path", default="", metavar="PATH", help="path under which a proxy shows the server, such as /llm")
    add(
        "--allowed-origins",
        type=comma_list,
        default=(),
        metavar="LIST",
        help="pages that may use the server beside this machine's own: origins with commas, scheme://* for an editor's webviews, "
        "null for files, * for all",
    )
    add("--insecure", action="store_true", help="allow an address that others can reach without a key")
    add("--max-num-seqs", type=positive, default=16, metavar="N", help="sequences that run at once (default 16)")
    add("--max-num-batched-tokens", type=positive, default=512, metavar="N", help="tokens in one step (default 512)")
    add(
        "--max-queue", type=positive, default=256, metavar="N", help="requests that may wait; more are answered 429 (default 256)"
    )
    add(
        "--kv-cache-memory",
        type=byte_size,
        default=0,
        metavar="SIZE",
        help="memory of the KV cache, such as 2G (default: chosen)",
    )
    add(
        "--max-connections-per-address",
        type=non_negative,
        default=0,
        metavar="N",
        help="connections of one client address (default: half of all for other machines)",
    )
    caching = argparse.BooleanOptionalAction
    add("--enable-prefix-caching", action=caching, default=True, help="reuse the KV cache of equal beginnings (default on)")
    add("--served-model-name", default="", metavar="NAME", help="name that requests give (default: the pack's)")
    add(
        "--drain-seconds",
        type=non_negative,
        default=30,
        metavar="N",
        help="how long requests may go on after SIGTERM (default 30)",
    )
    add(
        "--batch-dir",
        default="",
        metavar="DIR",
        help="keep files and batches of /v1/files and /v1/batches here, over restarts too (default: none)",
    )
    add("--max-body-size", type=byte_size, default=8 << 20, metavar="SIZE", help="largest request, uploads too (default 8M)")
    add("--otlp-endpoint", default="", metavar="URL", help="send a span for each request to this OpenTelemetry collector")
    add("--log-format", choices=("text", "json"), default="text", help="lines on stderr; json has one for each request, as -v")


def run(args: argparse.Namespace) -> int:
    from ferrum.server.keys import read_keys
    from ferrum.server.options import ServeOptions

    # Options are checked before a compilation that may take long.
    options = ServeOptions(
        host=args.host,
        port=args.port,
        api_key=args.api_key,
        insecure=args.insecure,
        max_num_seqs=args.max_num_seqs,
        max_model_len=args.max_model_len,
        max_num_batched_tokens=args.max_num_batched_tokens,
        kv_cache_memory=args.kv_cache_memory,
        enable_prefix_caching=args.enable_prefix_caching,
        served_model_name=args.served_model_name,
        drain_seconds=float(args.drain_seconds),
        num_threads=args.threads,
        trust=args.trust,
        max_queue=args.max_queue,
        allowed_origins=args.allowed_origins,
        max_connections_per_address=args.max_connections_per_address,
        verbose=args.verbose,
        log_format=args.log_format,
        named_keys=read_keys(Path(args.api_key_file)) if args.api_key_file else (),
        socket=args.socket,
        tls_cert=Path(args.tls_cert) if args.tls_cert else None,
        tls_key=Path(args.tls_key) if args.tls_key else None,
        root_path=args.root_path,
        otlp_endpoint=args.otlp_endpoint,
        batch_dir=Path(args.batch_dir) if args.batch_dir else None,
        max_body_bytes=args.max_body_size,
        pid_file=pid_file(args.port, args.socket),
    )
    path = find_pack(args)
    from ferrum.server.start import serve

    return serve(path, options)
