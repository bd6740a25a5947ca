"""The result as Markdown: one line per case, with the goal and whether it was reached."""

from __future__ import annotations

from collections.abc import Iterable

from tests.bench.peers.cases import LLAMA, OPENVINO, OURS, TORCH, Goal, goals_for
from tests.bench.peers.record import Record, Row

HEADER = ("case", "format", "unit", "ferrum", LLAMA, OPENVINO, TORCH, "ratio", "measured", "goal", "reached")
ROOF_UNITS = {"read_gb_per_s": "GB/s read", "f32_tflops": "TFLOP/s f32", "bf16_tflops": "TFLOP/s bf16", "int8_tops": "TOP/s int8",
              "bf16_tile_tflops": "TFLOP/s bf16 in tiles", "int8_tile_tops": "TOP/s int8 in tiles"}  # fmt: skip


def markdown(record: Record) -> str:
    parts = [f"Machine: {record.machine['name']}, {record.machine['threads']} threads; {record.machine['date']}."]
    roofs = [f"{record.roof(key):.3g} {unit}" for key, unit in ROOF_UNITS.items() if record.roof(key)]
    if roofs:
        parts.append(f"Roofs measured between the runs (medians): {', '.join(roofs)}.")
    parts.append("Medians ± half the range. Ratios are ferrum to the peer; of times and memory, smaller is better.")
    for shape in dict.fromkeys(row.shape for row in record.rows):
        parts.append(f"## {shape}\n\n{_table(record, shape)}")
        notes = [note for row in record.rows if row.shape == shape for note in _notes(row)]
        if notes:
            parts.append("\n".join(f"- {note}" for note in dict.fromkeys(notes)))
    if record.sizes:
        parts.append("## Bytes of the weights\n\n" + _sizes(record))
    return "\n\n".join(parts) + "\n"


def _table(record: Record, shape: str) -> str:
    lines = [_line(HEADER), _line("---" for _ in HEADER)]
    for row in record.rows:
        if row.shape == shape:
            lines += [_line(cells) for cells in cells_of(row)]
    return "\n".join(lines)


def cells_of(row: Row) -> list[tuple[str, ...]]:
    """One line per goal; lines after the first repeat no figures."""
    goals = goals_for(row.shape, row.line, row.format)
    figures = tuple(_figure(row, name) for name in (OURS, LLAMA, OPENVINO, TORCH))
    shown = ", ".join(f"{100 * v:.0f} % {k}" if k != "growth" else f"{v:.2f} × arithmetic" for k, v in row.facts.items())
    ratios = ", ".join(f"{r:.2f} × {name}" for name in (LLAMA, OPENVINO, TORCH) if (r := row.ratio(name)) is not None)
    first = (row.line, row.format, row.unit, *figures, ratios, shown)
    if not goals:
        return [(*first, "", "")]
    verdicts = [(goal.text, verdict(row, goal)) for goal in goals]
    return [
        (*first, *verdicts[0]),
        *((("",) * len(first)) + v for v in verdicts[1:]),
    ]


def verdict(row: Row, goal: Goal) -> str:
    value = row.ratio(goal.peer) if goal.peer else row.facts.get(goal.fact)
    if value is None:
        return "not measured"
    return "yes" if goal.met(value) else f"no ({value:.2f})"


def _figure(row: Row, name: str) -> str:
    value = row.median(name)
    if value is None:
        return "-"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} ± {100 * row.spread(name):.0f} %"


def _notes(row: Row) -> list[str]:
    return [f"{row.line}, {row.format}: {name}: {text}" for name, text in row.notes.items()]


def _sizes(record: Record) -> str:
    lines = [_line(("shape", "format", "ferrum", "GGUF", "bits per weight", "within 5 %"))]
    lines.append(_line("---" for _ in range(6)))
    for s in record.sizes:
        ours, theirs, count = s["ours"], s["theirs"], s["parameters"]
        bits = f"{8 * ours / count:.2f} / {8 * theirs / count:.2f} ({s['variant']})"
        near = "yes" if abs(ours / theirs - 1) <= 0.05 else f"no ({ours / theirs:.2f})"
        lines.append(_line((s["shape"], s["format"], f"{ours:,}", f"{theirs:,}", bits, near)))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
