from report import SCRIPTED, TINY, check

# setup
from langchain_openai import ChatOpenAI

base_url = f"{TINY}/v1"
model = ChatOpenAI(model="tiny", base_url=base_url, api_key="none")
# end
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

scripted = ChatOpenAI(model="tiny", base_url=f"{SCRIPTED}/v1", api_key="none")


class Person(BaseModel):
    name: str
    age: int


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@check("chat")
def _():
    return isinstance(model.invoke("Say something.", max_tokens=16).content, str)


@check("stream")
def _():
    return list(model.stream("Say something.", max_tokens=16))


@check("tools")
def _():
    bound, messages = scripted.bind_tools([add]), [HumanMessage("What is 2 + 3?")]
    first = bound.invoke(messages)
    call = first.tool_calls[0]
    messages += [first, ToolMessage(str(add.invoke(call["args"])), tool_call_id=call["id"])]
    return "5" in bound.invoke(messages).content


@check("structured")
def _():
    for method in ("json_schema", "function_calling", "json_mode"):
        found = scripted.with_structured_output(Person, method=method).invoke("Who is Ada? Answer in JSON.")
        if found.name != "Ada":
            return False
    return True
