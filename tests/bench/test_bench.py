"""The side-by-side measurement without any peer: parsers, alternation, goals, table, load generator, vocabulary."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ferrum.pack.programs import build_of, kv_groups
from ferrum.pack.reader import open_pack
from tests.bench.peers import __main__ as program
from tests.bench.peers import ferrum_, ferrum_worker, llama_cpp, load, openvino, plots, process, sections
from tests.bench.peers.cases import BANDWIDTH, FORMATS, GOALS, GROWTH, LLAMA, OURS, SPEED, Case, Goal, goals_for
from tests.bench.peers.install import Peers
from tests.bench.peers.models import Models
from tests.bench.peers.record import Failure, Record, Row, alternate
from tests.bench.peers.table import cells_of, markdown, verdict
from tests.bench.peers.vocabulary import Vocabulary

DECODE, PREFILL = Case(16, 48), Case(512, 1)


def test_parsers_read_what_the_peers_print() -> None:
    bench = [{"n_prompt": 512, "n_gen": 0, "avg_ts": 461.5}, {"n_prompt": 0, "n_gen": 48, "avg_ts": 78.25}]
    assert llama_cpp.parse_bench(json.dumps(bench), DECODE) == {"prefill 512": 461.5, "decode, 1 sequence": 78.25}
    several = [Case(16, 32, 4), Case(16, 24, 16)]
    lines = 'main: loading\n{"pl": 4, "speed_tg": 84.4}\n{"pl": 16, "speed_tg": 109.4}\n'
    assert llama_cpp.parse_batched(lines, several) == {"decode, 4 sequences": 84.4, "decode, 16 sequences": 109.4}
    assert openvino.parse("[42.5, 845.0]", [DECODE, PREFILL]) == {"decode, 1 sequence": 42.5, "prefill 512": 845.0}
    roofs = {"read_gb_per_s": 50.0, "decode_tokens_per_s": 4.0}
    ours = {"prefill_tokens_per_s": 10.0, "decode_tokens_per_s": 3.0, "roofs": roofs}
    assert ferrum_.parse(json.dumps(ours), DECODE) == (3.0, {"read_gb_per_s": 50.0})
    assert ferrum_.parse(json.dumps(ours), PREFILL)[0] == 10.0


@pytest.mark.parametrize("text", ["", "[]", "error: no model"])
def test_a_peer_that_prints_nothing_fails(text: str) -> None:
    with pytest.raises(Failure):
        llama_cpp.parse_bench(text, DECODE)
    with pytest.raises(Failure):
        llama_cpp.parse_batched(text, [DECODE])


def test_commands_hold_both_sides_to_the_same_case() -> None:
    case = Case(16, 24, 16)
    ours = [str(c) for c in ferrum_.bench_command(Path("a.fpk"), case, 2)]
    theirs = [str(c) for c in llama_cpp.batched_command(Path("bin"), Path("a.gguf"), [case], 2)]
    assert ours[ours.index("--concurrency") + 1] == theirs[theirs.index("-npl") + 1] == "16"
    assert ours[ours.index("--prompt-tokens") + 1] == theirs[theirs.index("-npp") + 1] == "16"
    assert ours[ours.index("--max-tokens") + 1] == theirs[theirs.index("-ntg") + 1] == "24"
    served = [str(c) for c in llama_cpp.serve_command(Path("bin"), Path("a.gguf"), 1, 16, 256, 2, "q8_0")]
    assert served[served.index("-c") + 1] == str(16 * 256)
    assert served[served.index("-ctk") + 1] == served[served.index("-ctv") + 1] == "q8_0"


def test_participants_take_turns_and_a_failing_one_drops_out() -> None:
    order: list[str] = []

    def visit(name: str, value: float) -> dict[str, float]:
        order.append(name)
        if name == "broken":
            raise Failure("no such program")
        return {"line": value + len(order)}

    names = {"a": 10.0, "broken": 0.0, "b": 20.0}
    lines, failed = alternate({n: (lambda n=n, v=v: visit(n, v)) for n, v in names.items()}, 2)  # type: ignore[misc]
    assert order == ["a", "broken", "b", "a", "b"]
    assert lines == {"line": {"a": [11.0, 14.0], "b": [23.0, 25.0]}}
    assert failed == {"broken": "no such program"}


def _row(line: str = "decode, 1 sequence") -> Row:
    return Row("qwen3-0.6b", line, "4 bit", "tokens/s", {OURS: [30.0, 34.0], LLAMA: [20.0, 20.0]}, {BANDWIDTH: 0.9})


def test_goals_are_judged_on_medians() -> None:
    row = _row()
    assert row.ratio(LLAMA) == 1.6
    assert row.spread(OURS) == pytest.approx(2 / 32)
    assert verdict(row, Goal(">=", 1.4, LLAMA)) == "yes"
    assert verdict(row, Goal(">=", 1.7, LLAMA)) == "no (1.60)"
    assert verdict(row, Goal("<=", 1 / 3, LLAMA)) == "no (1.60)"
    assert verdict(row, Goal(">=", 0.88, fact=BANDWIDTH)) == "yes"
    assert verdict(row, Goal(">=", 1.3, "OpenVINO")) == "not measured"
    assert [c[-1] for c in cells_of(row)] == ["yes", "yes"]
    assert Goal("<=", 1.05, fact=GROWTH).text == "cost ≤ 1.05 × arithmetic"


def test_every_goal_belongs_to_a_line_that_is_measured() -> None:
    lines = {case.name for case in SPEED}
    assert {line for line, _ in GOALS} - lines == {
        "prefill 4096", "decode, 1 sequence at 8192 tokens", sections.c.SERVED_SPEED, sections.c.SERVED_TTFT,
        sections.c.START, sections.c.MEMORY, sections.c.STRESS,
    }  # fmt: skip
    assert all((case.name, name) in GOALS for case in SPEED for name in FORMATS)
    slack = goals_for("qwen3-4b", "decode, 16 sequences", "4 bit")
    assert [g.bound for g in slack] == [pytest.approx(3.6)]


def test_the_record_survives_a_file_and_the_table_shows_it(tmp_path: Path) -> None:
    record = Record({"name": "a machine", "threads": 2, "date": "2026-01-01"})
    record.add_roofs({"read_gb_per_s": 50.0})
    record.add(_row())
    record.add(_row("decode, 4 sequences"))
    record.add(_row())
    record.add_size({"shape": "s", "format": "4 bit", "variant": "Q4_0", "ours": 100, "theirs": 90, "parameters": 160})
    record.save(tmp_path / "samples.json")
    again = Record.load(tmp_path / "samples.json")
    assert again == record
    assert [row.line for row in again.rows] == ["decode, 1 sequence", "decode, 4 sequences"]
    text = markdown(again)
    assert "50 GB/s read" in text
    line = "| decode, 1 sequence | 4 bit | tokens/s | 32.0 ± 6 % | 20.0 ± 0 % | - | - | 1.60 × llama.cpp | 90 % of bandwidth "
    assert line + "| ≥ 1.4 × llama.cpp | yes |" in text
    assert "| s | 4 bit | 100 | 90 | 5.00 / 4.50 (Q4_0) | no (1.11) |" in text
    rows = json.loads((tmp_path / "samples.json").read_text())["rows"]
    assert plots.ratios(rows) == [(f"{r['line']}, 4 bit", {LLAMA: 1.6}) for r in rows]
    assert plots.shares(rows)[0] == ("decode, 1 sequence, 4 bit (of bandwidth)", 0.9)


def test_growth_and_attention_follow_from_two_lengths() -> None:
    models = Models("qwen3-0.6b", Peers(Path(), Path(), Path()))
    assert models.linear_flops() == pytest.approx(2 * 440e6, rel=0.01)

    def speed(prompt: int) -> float:
        return 1e12 / models.prefill_flops(prompt)

    found = sections.growth(models, 512, speed(512), 4096, speed(4096))
    assert found[GROWTH] == pytest.approx(1)
    assert found["attention"] == pytest.approx(models.attention_flops(2048) / models.prefill_flops(4096))


def test_sizes_come_from_what_a_pack_says_of_itself(tiny_pack: Path) -> None:
    models = Models("qwen3-0.6b", Peers(Path(), Path(), Path()))
    with open_pack(tiny_pack, trust=True) as pack:
        step, kv = build_of(pack.manifest), kv_groups(pack.manifest)[0]
        assert models.weight_bytes(tiny_pack) == pack.member("weights").nbytes
    assert models.step_bytes(tiny_pack) == step.weight_bytes > 0
    assert models.kv_bytes(tiny_pack) == kv.unit_bytes / kv.unit


def test_launches_are_named_by_their_kernel() -> None:
    symbols = ("linear_03e52f07c5", "paged_attention_51a4faab4b_kv", "sample")
    assert ferrum_worker.launch_kinds(list(symbols)) == ["linear", "paged_attention_kv", "sample"]


def test_a_long_prompt_is_timed_and_profiled(tiny_pack: Path) -> None:
    (found,) = ferrum_worker.main({"pack": str(tiny_pack), "cases": [(96, 13)], "threads": 1})
    assert found["prefill"] > 0
    assert len(found["decode"]) == ferrum_worker.PIECES
    kernels = found["kernels"]
    assert not kernels or (kernels["linear"] > 0 and any("attention" in k for k in kernels))


@pytest.mark.parametrize("size", [512, 32000])
def test_the_vocabulary_has_its_size_and_tokenizes(size: int, tmp_path: Path) -> None:
    import tokenizers

    Vocabulary(size).write(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == size
    assert tokenizer.decode(tokenizer.encode("Hello, world ä").ids) == "Hello, world ä"
    assert tokenizer.token_to_id("<|im_end|>") == size - 1


def test_gguf_names_cover_every_weight() -> None:
    from ferrum.graphs.models.random_weights import tensor_shapes
    from tests.bench.peers.gguf_model import gguf_name

    for shape in ("qwen3-0.6b", "llama-1.1b"):
        names = [gguf_name(n) for n in tensor_shapes(sections.c.SHAPES[shape])]
        assert len(set(names)) == len(names)
        assert "token_embd.weight" in names


@contextmanager
def fake_server(events: list[dict[str, object]], *, status: str = "200 OK", chunk: int = 7) -> Iterator[int]:
    """Answers every request with ``events``, in chunks that cut lines in the middle."""
    lines = "".join(f"data: {json.dumps(e)}\n\n" for e in events).encode() + b"data: [DONE]\n\n"

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length"))
        await reader.readexactly(length)
        writer.write(f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for at in range(0, len(lines), chunk):
            piece = lines[at : at + chunk]
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(handle, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


def _events(tokens: int, prompt: int) -> list[dict[str, object]]:
    usage = {"prompt_tokens": prompt, "completion_tokens": tokens}
    return [*({"choices": [{"text": "x"}]} for _ in range(tokens)), {"choices": [], "usage": usage}]


def test_the_load_generator_counts_tokens_and_times_the_first() -> None:
    with fake_server(_events(4, 8)) as port:
        found = load.drive(port, load.Load(clients=3, prompt=8, new=4, requests=2), 1000)
    assert found["tokens_per_s"] > 0
    assert 0 < found["ttft_p50"] <= found["ttft_max"] <= found["seconds"]


@pytest.mark.parametrize(
    ("events", "status"),
    [(_events(3, 8), "200 OK"), (_events(4, 9), "200 OK"), ([{"error": {"message": "full"}}], "200 OK"), ([], "503 Busy")],
)
def test_a_load_that_was_not_answered_in_full_fails(events: list[dict[str, object]], status: str) -> None:
    with fake_server(events, status=status) as port, pytest.raises(Failure):
        load.drive(port, load.Load(clients=2, prompt=8, new=4), 1000)


def test_prompts_are_random_ids_and_repeat_with_the_seed() -> None:
    work = load.Load(clients=2, prompt=5, requests=2)
    first = load.prompts(work, 1000, 1)
    assert len(first) == 4 and all(len(p) == 5 and max(p) < 992 for p in first)
    assert first == load.prompts(work, 1000, 1) != load.prompts(work, 1000, 2)


def test_memory_of_a_tree_and_a_failing_program(tmp_path: Path) -> None:
    command = ["sh", "-c", "sleep 30 & wait"]
    with process.started(command, tmp_path / "log") as running:
        for _ in range(200):
            if len(process.process_tree(running.pid)) == 2:
                break
            threading.Event().wait(0.01)
        assert len(process.process_tree(running.pid)) == 2
        with process.memory_peak(running.pid, 0.01) as peak:
            pass
        assert peak["pss"] > 0
    assert running.poll() is not None
    with pytest.raises(Failure, match="ended with 3: oh no"):
        process.run(["sh", "-c", "echo oh no >&2; exit 3"])
    with pytest.raises(Failure):
        process.run(["/nonexistent"])


def test_names_on_the_command_line_are_checked() -> None:
    assert program.chosen("", ("a", "b"), ["b"]) == ["b"]
    assert program.chosen("b, a", ("a", "b"), []) == ["b", "a"]
    with pytest.raises(SystemExit):
        program.chosen("c", ("a", "b"), [])
    assert program.file_name("Intel(R) Xeon(R) Processor @ 2.50GHz") == "intel-xeon-processor-2.50ghz"


def test_safetensors_offsets_are_found(tmp_path: Path) -> None:
    models = Models("llama-1.1b", Peers(tmp_path, tmp_path, tmp_path))
    (tmp_path / "llama-1.1b").mkdir()
    header = b'{"a":{}}'
    (tmp_path / "llama-1.1b/tokenizer.json").touch()
    (tmp_path / "llama-1.1b/model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 20)
    assert models.parameters == 10


def test_a_recorded_command_names_no_folder() -> None:
    words = ["--only", "speed", "--work", "/srv/peers", "--output=/srv/out", "--rounds", "2"]
    assert program.shown(words) == ["--only", "speed", "--rounds", "2"]
