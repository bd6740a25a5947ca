from report import SCRIPTED, TINY, check

# setup
import litellm

base_url = f"{TINY}/v1"
settings = {"model": "openai/tiny", "api_base": base_url, "api_key": "none"}
# end
scripted = {**settings, "api_base": f"{SCRIPTED}/v1"}
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
    return litellm.completion(**settings, messages=ASK, max_tokens=16).usage.completion_tokens > 0


@check("stream")
def _():
    return list(litellm.completion(**settings, messages=ASK, max_tokens=16, stream=True))[-1].choices[0].finish_reason


@check("tools")
def _():
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    first = litellm.completion(**scripted, messages=messages, tools=TOOLS).choices[0].message
    messages += [first.model_dump(), {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "5"}]
    return "5" in litellm.completion(**scripted, messages=messages, tools=TOOLS).choices[0].message.content


@check("structured")
def _():
    ask = [{"role": "user", "content": "Who is Ada? Answer in JSON."}]
    done = litellm.completion(**scripted, messages=ask, response_format={"type": "json_object"})
    return '"Ada"' in done.choices[0].message.content
