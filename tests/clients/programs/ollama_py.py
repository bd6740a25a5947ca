from report import SCRIPTED, TINY, check

# setup
import ollama

host = TINY
client = ollama.Client(host=host)
# end
scripted = ollama.Client(host=SCRIPTED)
ASK = [{"role": "user", "content": "Say something."}]


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


@check("chat")
def _():
    return client.chat(model="tiny", messages=ASK, options={"num_predict": 16}).message.content is not None


@check("stream")
def _():
    return list(client.chat(model="tiny", messages=ASK, options={"num_predict": 16}, stream=True))[-1].done


@check("tools")
def _():
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    first = scripted.chat(model="tiny", messages=messages, tools=[add]).message
    call = first.tool_calls[0].function
    messages += [first, {"role": "tool", "tool_name": call.name, "content": str(add(**call.arguments))}]
    return "5" in scripted.chat(model="tiny", messages=messages, tools=[add]).message.content


@check("structured")
def _():
    properties = {"name": {"type": "string"}, "age": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": False}
    ask = [{"role": "user", "content": "Who is Ada? Answer in JSON."}]
    return '"Ada"' in scripted.chat(model="tiny", messages=ask, format=schema).message.content
