"""The parts of the table: each measures its lines and adds them to the record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.bench.peers import cases as c
from tests.bench.peers import ferrum_, llama_cpp, load, openvino, process, torch_eager
from tests.bench.peers.cases import FORMATS, LLAMA, OPENVINO, OURS, TORCH, Case, Format
from tests.bench.peers.ferrum_worker import PIECES
from tests.bench.peers.install import Peers
from tests.bench.peers.models import Models
from tests.bench.peers.record import Record, Row, Visit, alternate


@dataclass
class Run:
    """What every section needs. ``formats``: names; ``full``: more cases and formats."""

    peers: Peers
    models: Models
    record: Record
    threads: int
    rounds: int
    formats: tuple[str, ...]
    without: frozenset[str] = frozenset()
    full: bool = False
    roofs: list[Mapping[str, float]] = field(default_factory=list)

    @property
    def first(self) -> bool:
        """The shape that all sections run on."""
        return self.models.shape == next(iter(c.SHAPES))

    def alternate(self, visits: Mapping[str, Visit], rounds: int = 0) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
        wanted = {name: visit for name, visit in visits.items() if name not in self.without}
        result = alternate(wanted, rounds or self.rounds)
        for roofs in self.roofs:
            self.record.add_roofs(roofs)
        self.roofs.clear()
        return result

    def add(self, line: str, form: str, unit: str, samples: dict[str, list[float]], notes: dict[str, str]) -> Row:
        row = Row(self.models.shape, line, form, unit, samples, {}, dict(notes))
        self.record.add(row)
        shown = "  ".join(f"{name} {row.median(name):.2f}" for name in samples)
        print(f"{row.shape:12} {line:34} {form:8} {unit:9} {shown}", flush=True)
        return row

    def gguf(self, form: Format) -> Path:
        path, size = self.models.nearest_gguf(form)
        self.record.add_size(size)
        return path

    def tight(self) -> Format:
        """The format of the sections that take one."""
        return FORMATS["4 bit"]


def speed(run: Run) -> None:
    """Decode at 1, 4 and 16 sequences, prefill of 128 and 512 tokens, in each format."""
    chosen = c.SPEED if run.first else c.LARGE_SPEED
    for name in run.formats:
        form = FORMATS[name]
        pack, gguf = run.models.pack(form.quant), run.gguf(form)
        visits: dict[str, Visit] = {
            OURS: partial(ferrum_.bench, pack, chosen, run.threads, run.roofs),
            LLAMA: partial(llama_cpp.bench, run.peers.programs, gguf, chosen, run.threads),
        }
        if run.first and OPENVINO not in run.without:
            folder = run.models.openvino(form)
            visits[OPENVINO] = partial(openvino.bench, run.peers, folder, chosen, run.threads)
        if run.first and name == "bf16":
            visits[TORCH] = partial(torch_eager.bench, run.peers, run.models.folder, chosen, run.threads)
        lines, failed = run.alternate(visits)
        for case in chosen:
            row = run.add(case.name, name, "tokens/s", lines.get(case.name, {}), failed)
            _shares(run, row, case, form, pack)


def _shares(run: Run, row: Row, case: Case, form: Format, pack: Path) -> None:
    """Of bandwidth for decode, of the best matrix rate for prefill."""
    speed = row.median(OURS)
    read, rates = run.record.roof("read_gb_per_s"), [run.record.roof(k) or 0.0 for k in form.arithmetic]
    if speed is None or read is None:
        return
    models = run.models
    if case.prefill:
        row.facts[c.PEAK] = speed * models.prefill_flops(case.prompt) / (1e12 * max(rates))
    else:
        context = case.prompt + case.new / 2
        step = models.step_bytes(pack) + case.sequences * context * models.kv_bytes(pack)
        row.facts[c.BANDWIDTH] = speed / case.sequences * step / (1e9 * read)


def prefill(run: Run) -> None:
    """4,096 tokens: the share of attention, and how the cost of a token grows beside the arithmetic."""
    long, short = c.LONG_PREFILL, Case(512, 1)
    profiles: list[dict[str, float]] = []
    for name in run.formats if run.full else (run.tight().name,):
        form = FORMATS[name]
        pack, gguf = run.models.pack(form.quant), run.gguf(form)

        def ours(pack: Path = pack) -> dict[str, float]:
            first, second = ferrum_.long_prompts(pack, (short, long), run.threads)
            profiles.append(second["kernels"])
            return {short.name: first["prefill"], long.name: second["prefill"]}

        visits: dict[str, Visit] = {
            OURS: ours,
            LLAMA: partial(llama_cpp.long_prompt, run.peers.programs, gguf, long, run.threads),
        }
        lines, failed = run.alternate(visits)
        row = run.add(long.name, name, "tokens/s", lines.get(long.name, {}), failed)
        _shares(run, row, long, form, pack)
        fast, slow = Row("", "", "", "", lines.get(short.name, {})).median(OURS), row.median(OURS)
        if fast is None or slow is None:
            continue
        row.facts |= growth(run.models, short.prompt, fast, long.prompt, slow)
        if profiles[-1]:
            row.facts[c.ATTENTION] = sum(v for k, v in profiles[-1].items() if "attention" in k) / sum(profiles[-1].values())
            longest = sorted(profiles[-1].items(), key=lambda item: -item[1])[:6]
            row.notes[OURS] = "time of each kind of kernel: " + ", ".join(f"{k} {v:.2f} s" for k, v in longest)


def growth(models: Models, short: int, short_speed: float, long: int, long_speed: float) -> dict[str, float]:
    """The cost of a token at ``long`` over that at ``short``, over the same ratio of the arithmetic.

    The share of attention from the same two speeds: what grows with the length is attention.
    """
    per_short, per_long = 1 / short_speed, 1 / long_speed
    arithmetic = models.prefill_flops(long) / models.prefill_flops(short)
    slope = (per_long - per_short) / (long - short)
    return {c.GROWTH: per_long / per_short / arithmetic, c.ATTENTION: max(0.0, slope * long / per_long)}


def context(run: Run) -> None:
    """Decode of one sequence that has 8,192 tokens already, with the cache in 16 and in 8 bits."""
    case = c.LONG_CONTEXT
    if run.models.longest < case.prompt + case.new:
        return
    form = run.tight()
    gguf = run.gguf(form)
    for name, kv_dtype, cache in CACHES:
        pack = run.models.pack(form.quant, kv_dtype)

        def ours(pack: Path = pack) -> dict[str, list[float]]:
            return {case.name: ferrum_.long_prompts(pack, (case,), run.threads)[0]["decode"]}

        def theirs(cache: str = cache) -> dict[str, list[float]]:
            return {case.name: llama_cpp.at_depth(run.peers.programs, gguf, case, run.threads, cache, PIECES)}

        lines, failed = run.alternate({OURS: ours, LLAMA: theirs}, 1 if not run.full else 0)
        row = run.add(case.name, name, "tokens/s", lines.get(case.name, {}), failed)
        _shares(run, row, case, form, pack)


Server = tuple[Callable[[int], process.Command], str]
# The line's format, ferrum's cache and llama.cpp's.
CACHES = (("4 bit", "", "f16"), ("4 bit, KV int8", "int8", "q8_0"))


def _servers(run: Run, slots: int, context: int, kv_dtype: str = "", cache: str = "f16") -> dict[str, Server]:
    """Participant: (command for a port, path that answers 200 when it is ready)."""
    form = run.tight()
    pack, gguf = run.models.pack(form.quant, kv_dtype), run.gguf(form)
    kv = int(slots * (context + 16) * run.models.kv_bytes(pack))
    programs = run.peers.programs
    return {
        OURS: (lambda port: ferrum_.serve_command(pack, port, slots, context, kv, run.threads), "/ready"),
        LLAMA: (lambda port: llama_cpp.serve_command(programs, gguf, port, slots, context, run.threads, cache), "/health"),
    }


def _log(run: Run, name: str) -> Path:
    return run.peers.work / f"{name}.server.log"


def served(run: Run) -> None:
    """16 clients at once, with the cache in 16 and in 8 bits: output tokens/s and the median time to the first token."""
    work = load.Load(requests=3 if run.full else 1)
    vocab = run.models.config["vocab_size"]
    seeds = iter(range(1, 1000))

    def visit(name: str, server: Server) -> dict[str, float]:
        command, ready = server
        port = process.free_port()
        with process.started(command(port), _log(run, name)) as running:
            process.wait_ready(running, f"http://127.0.0.1:{port}{ready}")
            load.drive(port, load.Load(clients=2, prompt=16, new=4), vocab, next(seeds))
            found = load.drive(port, work, vocab, next(seeds))
        return {c.SERVED_SPEED: found["tokens_per_s"], c.SERVED_TTFT: found["ttft_p50"]}

    for form, kv_dtype, cache in CACHES:
        servers = _servers(run, work.clients, 256, kv_dtype, cache)
        lines, failed = run.alternate({name: partial(visit, name, server) for name, server in servers.items()})
        for line, unit in ((c.SERVED_SPEED, "tokens/s"), (c.SERVED_TTFT, "s")):
            run.add(line, form, unit, lines.get(line, {}), failed)


def start(run: Run) -> None:
    """From the start of a server to the first token of its first answer, files cached; then its memory under load."""
    vocab = run.models.config["vocab_size"]

    def visit(name: str, server: Server) -> dict[str, float]:
        command, ready = server
        port = process.free_port()
        began = time.perf_counter()
        with process.started(command(port), _log(run, name)) as running, process.memory_peak(running.pid) as peak:
            process.wait_ready(running, f"http://127.0.0.1:{port}{ready}")
            up = time.perf_counter() - began
            first = load.drive(port, load.Load(clients=1, prompt=16, new=4), vocab)
            load.drive(port, load.Load(clients=4, prompt=128, new=16), vocab)
        return {
            c.START: up + first["ttft_p50"],
            c.MEMORY: peak["pss"] / 2**20,
            f"{c.MEMORY}, no file behind": peak["anonymous"] / 2**20,
        }

    servers = _servers(run, 4, 1024)
    process.warm(run.models.pack(run.tight().quant))
    process.warm(run.gguf(run.tight()))
    lines, failed = run.alternate({name: partial(visit, name, server) for name, server in servers.items()})
    for line, unit in ((c.START, "s"), (c.MEMORY, "MiB"), (f"{c.MEMORY}, no file behind", "MiB")):
        run.add(line, run.tight().name, unit, lines.get(line, {}), failed)
    _one_shot(run)


def _one_shot(run: Run) -> None:
    """The whole life of a program that answers with one token."""
    pack, gguf = run.models.pack(run.tight().quant), run.gguf(run.tight())

    def visit(command: process.Command) -> dict[str, float]:
        began = time.perf_counter()
        process.run(command)
        return {c.ONE_SHOT: time.perf_counter() - began}

    text = "How do you do?"
    visits: dict[str, Visit] = {
        OURS: partial(visit, ferrum_.one_shot_command(pack, text, run.threads)),
        LLAMA: partial(visit, llama_cpp.one_shot_command(run.peers.programs, gguf, text, run.threads)),
    }
    lines, failed = run.alternate(visits)
    run.add(c.ONE_SHOT, run.tight().name, "s", lines.get(c.ONE_SHOT, {}), failed)


def stress(run: Run) -> None:
    """Decode of one sequence while another program keeps one core busy."""
    case = Case(16, 48)
    form = run.tight()
    pack, gguf = run.models.pack(form.quant), run.gguf(form)

    def both(measure: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        quiet = measure()[case.name]
        with process.busy_core():
            return {c.STRESS: measure()[case.name], "quiet": quiet}

    unused: list[Mapping[str, float]] = []  # roofs measured beside a busy core are not the machine's
    visits: dict[str, Visit] = {
        OURS: partial(both, partial(ferrum_.bench, pack, (case,), run.threads, unused)),
        LLAMA: partial(both, partial(llama_cpp.bench, run.peers.programs, gguf, (case,), run.threads)),
    }
    lines, failed = run.alternate(visits)
    row = run.add(c.STRESS, form.name, "tokens/s", lines.get(c.STRESS, {}), failed)
    for name, fact in ((OURS, c.KEPT), (LLAMA, f"{c.KEPT} by {LLAMA}")):
        quiet = Row("", "", "", "", lines.get("quiet", {})).median(name)
        stressed = row.median(name)
        if quiet and stressed:
            row.facts[fact] = stressed / quiet


SECTIONS: dict[str, Callable[[Run], None]] = {
    "speed": speed,
    "prefill": prefill,
    "context": context,
    "served": served,
    "start": start,
    "stress": stress,
}
# of the shapes other than the first
LARGE_SECTIONS = ("speed", "context", "start")
