"""Questions for the built-in model and their answers in token ids, on any device."""

from __future__ import annotations

from ferrum.devices.options import DeviceOptions
from ferrum.engine.engine import Engine
from ferrum.engine.params import SamplingParams

OPTIONS = DeviceOptions(max_seqs=16, max_tokens=256)
GREEDY = SamplingParams(temperature=0, max_tokens=80)
QUESTIONS, CROWD, FEW = 50, 32, 12


def asked(count: int) -> list[list[int]]:
    """The prompts of ``count`` questions of every kind in turn; this needs the tokenizer."""
    from tokenizers import Tokenizer

    from ferrum.graphs.tiny.chat import MODEL_FOLDER, Chat
    from ferrum.graphs.tiny.questions import questions

    chat = Chat(Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json")))
    every = questions()
    step = max(1, len(every) // count)
    chosen = every[::step][:count]
    return [chat.encode(chat.render(p.messages, p.tools, add_generation_prompt=True)) for p in chosen]


def generate(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> tuple[list[list[int]], int]:
    """The output of every prompt, all at once, and how many preemptions there were."""
    found: dict[str, list[int]] = {}
    before = engine.stats().num_preemptions
    for i, prompt in enumerate(prompts):
        engine.add(str(i), prompt, params)
        found[str(i)] = []
    while engine.has_work:
        for event in engine.step():
            found[event.request_id].append(event.token)
    stats = engine.stats()
    assert stats.blocks_used == 0
    return list(found.values()), stats.num_preemptions - before
