from report import SCRIPTED, TINY, check

# setup
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

agent = Agent(OpenAIChatModel("tiny", provider=OpenAIProvider(base_url=f"{TINY}/v1", api_key="none")))
# end
from pydantic import BaseModel

scripted = OpenAIChatModel("tiny", provider=OpenAIProvider(base_url=f"{SCRIPTED}/v1", api_key="none"))


class Person(BaseModel):
    name: str
    age: int


@check("chat")
async def _():
    return isinstance((await agent.run("Say something.", model_settings={"max_tokens": 16})).output, str)


@check("stream")
async def _():
    async with agent.run_stream("Say something.", model_settings={"max_tokens": 16}) as stream:
        return isinstance(await stream.get_output(), str)


@check("tools")
async def _():
    adding = Agent(scripted)

    @adding.tool_plain
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    return "5" in (await adding.run("What is 2 + 3?")).output


@check("structured")
async def _():
    return (await Agent(scripted, output_type=Person).run("Who is Ada?")).output.name == "Ada"
