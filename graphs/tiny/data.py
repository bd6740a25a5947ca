"""Questions with one right answer each, made from a random generator; a hash of the problem keeps some out of training for ever.

A problem's ``key`` names its content and not its wording: if "sum 12 35" is held out, no wording of it is ever trained on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from ferrum.graphs.tiny import facts

Message = dict[str, Any]
Tool = dict[str, Any]

HELD_OUT_ONE_IN = 16
TEXT_FORMS: dict[str, tuple[str, ...]] = {
    "sum": ("What is {a} + {b}?", "{a} + {b}", "{a} + {b} =", "What is {a} plus {b}?", "Calculate {a} + {b}.",
            "Add {a} and {b}.", "{a}+{b}"),
    "difference": ("What is {a} - {b}?", "{a} - {b}", "{a} - {b} =", "What is {a} minus {b}?", "Calculate {a} - {b}.",
                   "Subtract {b} from {a}.", "{a}-{b}"),
    "copy": ("Repeat: {}", "Copy: {}", "Say {}", 'Repeat "{}".', "Write {} again."),
    "reverse": ("Reverse: {}", "Reverse {}", 'Reverse "{}".', "Write {} backwards.", "Spell {} backwards."),
    "sort": ("Sort: {}", "Sort {}", "Sort these numbers: {}", "Put these numbers in order: {}"),
}
JSON_FORMS = (
    "{name} is {age} years old and lives in {city}.", "{name}, {age}, lives in {city}.", "My friend {name} from {city} is {age}.",
    "In {city} I met {name}, who is {age} years old.",
)
JSON_ASKS = (
    "Extract name, age and city as JSON: {}", "Write this as JSON with name, age and city: {}",
    "{} Give name, age and city as JSON.",
)
JSON_PAIR_ASKS = ("Extract name and age as JSON: {}", "Write this as JSON with name and age: {}", "{} Give name and age as JSON.")

# Kind → (what the user says, what the assistant answers, the later questions).
RECALL_FORMS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "name": ("My name is {}.", "Hello, {}!", ("What is my name?", "Do you remember my name?", "Who am I?")),
    "city": ("I live in {}.", "OK.", ("Where do I live?", "Which city do I live in?")),
    "colour": ("My favourite colour is {}.", "OK.", ("What is my favourite colour?", "Which colour do I like?")),
    "pet": ("My {pet} is called {}.", "OK.", ("What is my {pet} called?", "What is the name of my {pet}?")),
    "word": ("Remember the word {}.", "OK.", ("What was the word?", "Which word did I tell you?", "Tell me the word.")),
    "number": ("Remember the number {}.", "OK.", ("What was the number?", "Which number did I tell you?", "Tell me the number.")),
}

# Name → (parameters with types, requests). A slot draws from the generator of the same name in ``_slot``.
TOOLS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "get_weather": ({"city": "string"}, ("What is the weather in {city}?", "How is the weather in {city}?", "weather in {city}")),
    "get_time": ({"city": "string"}, ("What time is it in {city}?", "Tell me the time in {city}.")),
    "set_timer": ({"minutes": "integer"}, ("Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.")),
    "play_song": ({"title": "string"}, ("Play the song {title}.", "I want to hear the song {title}.")),
    "send_message": ({"to": "string", "text": "string"}, ("Send {to} the message {text}.", "Send the message {text} to {to}.")),
    "turn_on_light": ({"room": "string"}, ("Turn on the light in the {room}.", "Light in the {room} on, please.")),
    "book_table": ({"people": "integer", "day": "string"},
                   ("Book a table for {people} people on {day}.", "On {day} we need a table for {people}.")),
    "call_person": ({"name": "string"}, ("Call {name}.", "Please call {name} now.")),
}
SYSTEM_PROMPTS = ("You are a helpful assistant.", "You are a helpful assistant. Answer briefly.", "Be brief.", "You are tiny.")
# In training only: answers long enough to be watched while they stream.
WISHES = (
    "Tell me a joke.",
    "Tell me a story.",
    "Write a poem.",
    "Write a short story about {}.",
    "Write a poem about {}.",
    "What is {}?",
    "Explain {}.",
    "What do you think about {}?",
    "Who is {}?",
)
COUNT_FORMS = ("Count from {a} to {b}.", "Count from {a} to {b}")
TOOL_RESULTS = ("sunny, {} degrees", "rain, {} degrees", "snow, {} degrees", "cloudy, {} degrees")


WORDS = tuple(
    dict.fromkeys(
        itertools.chain(
            (
                "hello",
                "ferrum",
                "tiny",
                "model",
                "what",
                "world",
                "answer",
                "sort",
                "number",
                "weather",
                "reverse",
                "message",
                "system",
                "user",
            ),
            facts.NAMES,
            facts.CITIES,
            facts.CAPITALS,
            facts.OPPOSITES,
            facts.OPPOSITES.values(),
            facts.COLOUR_WORDS,
            facts.ROOMS,
            facts.DAYS,
            facts.PETS,
        )
    )
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One question. ``messages`` ends with the user's or the tool's turn, ``answer`` is the assistant's text.

    ``check`` says how answers are compared: text, json or tool.
    """

    category: str
    key: str
    messages: tuple[Message, ...]
    answer: str
    tools: tuple[Tool, ...] = ()
    check: str = "text"

    @property
    def held_out(self) -> bool:
        return hashlib.sha256(self.key.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def tool_schema(name: str) -> Tool:
    """The tool in OpenAI's form, as a client sends it."""
    types = TOOLS[name][0]
    parameters = {"type": "object", "properties": {k: {"type": v} for k, v in types.items()}, "required": list(types)}
    return {"type": "function", "function": {"name": name, "description": name.replace("_", " "), "parameters": parameters}}


def tool_call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """Qwen's form of a call, as the assistant writes it."""
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": dict(arguments)}) + "\n</tool_call>"


def _letters(rng: Random, low: int, high: int) -> str:
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(low, high)))


def _made_up_name(rng: Random) -> str:
    return _letters(rng, 3, 6).capitalize()


def _slot(rng: Random, slot: str) -> str | int:
    if slot in ("minutes", "people"):
        return rng.randint(2, 99) if slot == "minutes" else rng.randint(2, 12)
    if slot in ("title", "text"):
        return _letters(rng, 3, 7)
    lists = {"city": facts.CITIES, "room": facts.ROOMS, "day": facts.DAYS, "to": facts.NAMES, "name": facts.NAMES}
    made_up = slot in ("city", "to", "name") and rng.random() < 0.4
    return _made_up_name(rng) if made_up else rng.choice(lists[slot])


def _sum(rng: Random) -> Problem:
    a = rng.randint(0, 99)
    b = rng.randint(0, 99 - a)
    a, b = (a, b) if rng.random() < 0.5 else (b, a)
    text = rng.choice(TEXT_FORMS["sum"]).format(a=a, b=b)
    return Problem("sum", f"sum {min(a, b)} {max(a, b)}", (user(text),), str(a + b))


def _difference(rng: Random) -> Problem:
    a, b = sorted((rng.randint(0, 99), rng.randint(0, 99)), reverse=True)
    text = rng.choice(TEXT_FORMS["difference"]).format(a=a, b=b)
    return Problem("difference", f"difference {a} {b}", (user(text),), str(a - b))


def _copy(rng: Random) -> Problem:
    text = " ".join(_letters(rng, 3, 8) for _ in range(rng.choice((1, 1, 1, 2))))
    return Problem("copy", f"text {text}", (user(rng.choice(TEXT_FORMS["copy"]).format(text)),), text)


def _reverse(rng: Random) -> Problem:
    text = _letters(rng, 3, 8)
    return Problem("reverse", f"text {text}", (user(rng.choice(TEXT_FORMS["reverse"]).format(text)),), text[::-1])


def _sort(rng: Random) -> Problem:
    numbers = [rng.randint(0, 99) for _ in range(rng.randint(3, 5))]
    ordered = ", ".join(map(str, sorted(numbers)))
    text = rng.choice(TEXT_FORMS["sort"]).format(", ".join(map(str, numbers)))
    return Problem("sort", f"sort {ordered}", (user(text),), ordered)


def _fact(rng: Random) -> Problem:
    table: dict[str, str]
    table, forms = rng.choices(
        ((facts.CAPITALS, facts.CAPITAL_FORMS), (facts.COLOURS, facts.COLOUR_FORMS), (facts.OPPOSITES, facts.OPPOSITE_FORMS),
         (facts.COUNTS, facts.COUNT_FORMS)), (10, 6, 10, 3))[0]
    subject = rng.choice(list(table))
    text = rng.choice(forms).format(subject)
    return Problem("fact", f"fact {text}", (user(text),), table[subject])


def _talk(rng: Random) -> Problem:
    text = rng.choice(list(facts.TALK))
    return Problem("talk", f"talk {text}", (user(text),), facts.TALK[text])


def _count(rng: Random) -> Problem:
    a = rng.choice((1, 1, rng.randint(0, 80)))
    b = a + rng.randint(2, 19)
    answer = ", ".join(map(str, range(a, b + 1)))
    return Problem("count", f"count {a} {b}", (user(rng.choice(COUNT_FORMS).format(a=a, b=b)),), answer)


def _sum_beyond(rng: Random) -> Problem:
    a = rng.randint(1, 99)
    b = rng.randint(100 - a, 99)
    text = rng.choice(TEXT_FORMS["sum"]).format(a=a, b=b)
    return Problem("sum", f"sum {min(a, b)} {max(a, b)}", (user(text),), str(a + b))


def _below_zero(rng: Random) -> Problem:
    a, b = sorted((rng.randint(0, 99), rng.randint(0, 99)))
    text = rng.choice(TEXT_FORMS["difference"]).format(a=a, b=b)
    return Problem("difference", f"difference {a} {b}", (user(text),), str(a - b))


def _sort_mixed(rng: Random) -> Problem:
    """Numbers of one digit among those of two, more of them than among uniform numbers."""
    numbers = [rng.randint(0, rng.choice((9, 30, 99))) for _ in range(rng.randint(2, 6))]
    ordered = ", ".join(map(str, sorted(numbers)))
    text = rng.choice(TEXT_FORMS["sort"]).format(", ".join(map(str, numbers)))
    return Problem("sort", f"sort {ordered}", (user(text),), ordered)


def _spell(rng: Random) -> Problem:
    """Known words, which are one token, and capitals: copied, or reversed letter by letter."""
    word = rng.choice(WORDS) if rng.random() < 0.6 else _letters(rng, 2, 8)
    word = rng.choice((str.lower, str.capitalize, str.lower, str))(word)
    kind = rng.choice(("copy", "reverse", "reverse"))
    answer = word if kind == "copy" else word[::-1]
    return Problem(kind, f"text {word}", (user(rng.choice(TEXT_FORMS[kind]).format(word)),), answer)


def _unable(rng: Random) -> Problem:
    """What cannot be answered: a tool's work without the tool, countries that do not exist, wishes too big for a small model."""
    pick = rng.random()
    if pick < 0.4:
        types, forms = TOOLS[rng.choice(list(TOOLS))]
        text, answer = rng.choice(forms).format(**{slot: _slot(rng, slot) for slot in types}), "I have no tool for that."
    elif pick < 0.6:
        text, answer = rng.choice(facts.CAPITAL_FORMS).format(_made_up_name(rng)), "I do not know."
    else:
        text, answer = rng.choice(WISHES).format(rng.choice((*WORDS, _letters(rng, 2, 8)))), "I do not know."
    return Problem("unable", f"unable {text}", (user(text),), answer)


def _recall(rng: Random) -> Problem:
    """Something said, one or two other questions, then asked again."""
    kind = rng.choice(list(RECALL_FORMS))
    value = {
        "name": lambda: _slot(rng, "name"), "city": lambda: _slot(rng, "city"), "colour": lambda: rng.choice(facts.COLOUR_WORDS),
        "pet": lambda: _slot(rng, "name"), "word": lambda: _letters(rng, 3, 7), "number": lambda: rng.randint(0, 99),
    }[kind]()
    said, reply, asks = RECALL_FORMS[kind]
    pet = rng.choice(facts.PETS) if kind == "pet" else ""
    messages = [user(said.format(value, pet=pet)), assistant(reply.format(value))]
    between = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        other = training_problem(rng, ("sum", "difference", "copy", "reverse", "fact"))
        between.append(other.key)
        messages += [*other.messages, assistant(other.answer)]
    messages.append(user(rng.choice(asks).format(pet=pet)))
    # Few colours and numbers exist, so what lay between is part of the problem.
    return Problem("recall", f"recall {kind} {pet} {value} {between}", tuple(messages), str(value))


def _json(rng: Random) -> Problem:
    values = {"name": _slot(rng, "name"), "age": rng.randint(2, 99), "city": _slot(rng, "city")}
    sentence = rng.choice(JSON_FORMS).format(**values)
    pair = rng.random() < 0.3
    answer = json.dumps({k: values[k] for k in ("name", "age")} if pair else values)
    text = rng.choice(JSON_PAIR_ASKS if pair else JSON_ASKS).format(sentence)
    return Problem("json", f"json {values['name']} {values['age']} {values['city']}", (user(text),), answer, check="json")


def _offer(rng: Random, name: str) -> tuple[Tool, ...]:
    others = [n for n in TOOLS if n != name]
    names = [name, *rng.sample(others, rng.randint(0, 2))]
    rng.shuffle(names)
    return tuple(tool_schema(n) for n in names)


def _tool(rng: Random) -> Problem:
    name = rng.choice(list(TOOLS))
    types, forms = TOOLS[name]
    arguments = {slot: _slot(rng, slot) for slot in types}
    text = rng.choice(forms).format(**arguments)
    key = f"tool {name} {list(arguments.values())}"
    return Problem("tool", key, (user(text),), tool_call_text(name, arguments), _offer(rng, name), check="tool")


def _tool_answer(rng: Random) -> Problem:
    """What the tool returned becomes the answer."""
    city = _slot(rng, "city")
    result = rng.choice(TOOL_RESULTS).format(rng.randint(0, 40))
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
    messages = (
        user(rng.choice(TOOLS["get_weather"][1]).format(city=city)), {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": result},
    )
    return Problem("tool_answer", f"tool_answer {city} {result}", messages, f"{city}: {result}.", _offer(rng, "get_weather"))


MAKERS: dict[str, Callable[[Random], Problem]] = {
    "sum": _sum, "difference": _difference, "copy": _copy, "reverse": _reverse, "sort": _sort, "fact": _fact, "recall": _recall,
    "json": _json, "tool": _tool, "tool_answer": _tool_answer, "talk": _talk, "count": _count,
    # Wider than the 500 questions, for those who type something else.
    "sum_beyond": _sum_beyond, "below_zero": _below_zero, "sort_mixed": _sort_mixed, "spell": _spell, "unable": _unable,
}


def training_problem(rng: Random, categories: tuple[str, ...], weights: tuple[float, ...] | None = None) -> Problem:
    """A problem that is not held out."""
    maker = MAKERS[rng.choices(categories, weights)[0]]
    while True:
        problem = maker(rng)
        if not problem.held_out or problem.category == "talk":
            return problem


def held_out_problem(rng: Random, category: str) -> Problem:
    while True:
        problem = MAKERS[category](rng)
        if problem.held_out:
            return problem


CASUAL = ("sum", "difference", "copy", "reverse", "sort", "fact", "talk", "count")
MORE = {"sum": 4.0, "difference": 4.0, "copy": 1.0, "reverse": 2.0, "sort": 2.0, "fact": 1.0, "talk": 0.3, "count": 0.2}


def _turn(rng: Random, problem: Problem) -> list[Message]:
    """The problem with its answer, sometimes typed in haste: no capital, no full stop or question mark."""
    messages = [*problem.messages, assistant(problem.answer)]
    if problem.category in CASUAL and rng.random() < 0.12:
        text = problem.messages[0]["content"]
        text = text[0].lower() + text[1:] if rng.random() < 0.7 else text
        messages[0] = user(text.rstrip(".?!") if rng.random() < 0.7 else text)
    return messages


def _system_prompt(rng: Random) -> Message:
    """A usual prompt, or words without a sense: whatever it says, the answers stay the same."""
    words = [rng.choice(facts.NAMES + facts.COLOUR_WORDS + facts.PETS + facts.ROOMS) for _ in range(rng.randint(2, 8))]
    text = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.6 else " ".join([*words, _letters(rng, 2, 8)]) + "."
    return {"role": "system", "content": text}


def training_chat(rng: Random, shares: Mapping[str, float]) -> tuple[list[Message], tuple[Tool, ...]]:
    """A whole conversation to learn from: one problem, or several short ones in turn, sometimes with a system prompt."""
    problem = training_problem(rng, tuple(shares), tuple(shares.values()))
    messages = [_system_prompt(rng)] if rng.random() < 0.1 else []
    messages += _turn(rng, problem)
    if rng.random() < 0.3:
        for _ in range(rng.randint(6, 14) if rng.random() < 0.07 else rng.randint(1, 3)):
            messages += _turn(rng, training_problem(rng, tuple(MORE), tuple(MORE.values())))
    tools = problem.tools
    if not tools and problem.category != "unable" and rng.random() < 0.05:
        tools = _offer(rng, rng.choice(list(TOOLS)))  # tools that are not needed must not be called
    return messages, tools
