from report import SCRIPTED, TINY, check

# setup
from openai import OpenAI

base_url = f"{TINY}/v1"
client = OpenAI(base_url=base_url, api_key="none")
# end
scripted = OpenAI(base_url=f"{SCRIPTED}/v1", api_key="none")
ASK = [{"role": "user", "content": "Say something."}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
        },
    }
]


@check("chat")
def _():
    done = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=16)
    return done.choices[0].message.content is not None and done.usage.completion_tokens > 0


@check("stream")
def _():
    chunks = list(client.chat.completions.create(model="tiny", messages=ASK, max_tokens=16, stream=True))
    return chunks[-1].choices[0].finish_reason in ("stop", "length")


@check("tools")
def _():
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    first = scripted.chat.completions.create(model="tiny", messages=messages, tools=TOOLS).choices[0]
    call = first.message.tool_calls[0]
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": "5"}]
    last = scripted.chat.completions.create(model="tiny", messages=messages, tools=TOOLS).choices[0]
    return first.finish_reason == "tool_calls" and call.function.name == "add" and "5" in last.message.content


@check("structured")
def _():
    properties = {"name": {"type": "string"}, "age": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    ask = [{"role": "user", "content": "Who is Ada? Answer in JSON."}]
    done = scripted.chat.completions.create(model="tiny", messages=ask, response_format=form)
    return '"Ada"' in done.choices[0].message.content
