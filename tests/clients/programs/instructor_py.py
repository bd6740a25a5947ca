from report import SCRIPTED, TINY, check

# setup
import instructor
from openai import OpenAI

client = instructor.from_openai(OpenAI(base_url=f"{TINY}/v1", api_key="none"), mode=instructor.Mode.JSON)
# end
from pydantic import BaseModel

ASK = [{"role": "user", "content": "Who is Ada? Answer in JSON."}]


class Person(BaseModel):
    name: str
    age: int


def ask(mode):
    scripted = instructor.from_openai(OpenAI(base_url=f"{SCRIPTED}/v1", api_key="none", max_retries=0), mode=mode)
    found = scripted.chat.completions.create(model="tiny", messages=ASK, response_model=Person, max_retries=0)
    return found.name == "Ada" and found.age == 36


@check("structured: TOOLS")
def _():
    return ask(instructor.Mode.TOOLS)


@check("structured: JSON")
def _():
    return ask(instructor.Mode.JSON)


@check("structured: MD_JSON")
def _():
    return ask(instructor.Mode.MD_JSON)


@check("structured: JSON_SCHEMA")
def _():
    return ask(instructor.Mode.JSON_SCHEMA)
