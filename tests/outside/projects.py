"""llama.cpp's server tests: what of them applies, and what a harness changes in them."""

from __future__ import annotations

from tests.outside.lists import Project
from tests.outside.vllm import VLLM

CHAT_TOKENS, CACHED_TOKENS = 28, 16  # of a chat in one of them, by the tokenizer of the built-in model
_OWN_FIELD = "a field, route or flag that only llama.cpp has"
_OWN_MODEL = "needs a large model, its weights and what it would say"
_TELEMETRY = "llama.cpp's own telemetry (`timings`, `prompt_progress`, `__verbose`, `/slots`, `/props`)"

LLAMA_CPP = Project(
    name="llama.cpp",
    package="llama-cpp-python",
    plugin="outside_llama_cpp",
    tests="vendor/llama.cpp/tools/server/tests",
    without=("conftest.py",),
    files=(
        "unit/test_basic.py",
        "unit/test_chat_completion.py",
        "unit/test_compat_anthropic.py",
        "unit/test_compat_oai_responses.py",
        "unit/test_completion.py",
        "unit/test_ctx_shift.py",
        "unit/test_infill.py",
        "unit/test_security.py",
        "unit/test_stream.py",
        "unit/test_template.py",
        "unit/test_tokenize.py",
        "unit/test_tool_call.py",
    ),
    others="Its other files are about its router of several models, slots, adapters, drafts, built-in tools, images and "
    "embeddings.",
    excluded=(
        (
            r"_openai_library_stops|real_model|tool_call_slow|test_weather|test_calc_result|test_thoughts|test_hello_world",
            _OWN_MODEL,
        ),
        (r"thinking_with_reasoning_model|test_with_qwen_model", _OWN_MODEL),
        (r"test_completion\.py::test_completion_(stream_)?with_openai_library", ""),
        (
            r"test_completion\.py::|test_ctx_shift\.py::",
            "llama.cpp's own `/completion`, whose fields and answer are not OpenAI's",
        ),
        (
            r"test_infill_with|test_infill_without",
            "needs a model with tokens for filling in; `tests/server/test_infill.py` has one",
        ),
        (r"test_stream\.py", "llama.cpp's own resuming of streams, by its router"),
        (r"test_server_(multiple_addresses|slots|props|model_aliases)|load_split_model|no_ui|static_assets", _OWN_FIELD),
        (r"timings_per_token|return_progress|llama_telemetry|verbose_debug|test_chat_template$", _TELEMETRY),
        (r"test_chat_template_(assistant_prefill|continue_final_message_vllm)", _TELEMETRY),
        (r"test_context_size_exceeded", "an error type of llama.cpp's own, where OpenAI's API has a code"),
        (r"token_count$", "a route of llama.cpp's own, `/chat/completions/input_tokens`"),
        (r"vision_base64_with_multimodal|test_local_media_file", "needs a model that sees"),
        (r"cors_proxy|defaults_to_localhost_with_tools", _OWN_FIELD),
        (r"test_cors_options", "llama.cpp answers pages of every site unless told otherwise; here sites are named"),
        (r"test_tokenize_with_bos", "needs a tokenizer that begins a text with a token of its own"),
    ),
    renames=(
        ("test_chat_completion.py", r'"(codellama70b|gpt-3\.5-turbo-instruct)"', '"tinyllama-2"'),
        ("test_completion.py", '"davinci-002"', '"tinyllama-2"'),
        ("test_compat_oai_responses.py", '"gpt-4.1"', '"tinyllama-2"'),
        ("test_security.py", '"gpt-3.5-turbo"', '"tinyllama-2"'),
        ("test_compat_anthropic.py", '"model": "test"', '"model": "tinyllama-2-anthropic"'),
        ("*", r'system_fingerprint(.?\]?)\.startswith\("b"\)', r'system_fingerprint\1.startswith("fp_")'),
        # `/completions` is OpenAI's here and llama.cpp's own there
        ("test_security.py", r'"content" in res\.body', '"choices" in res.body'),
        # the first piece of a stream has an empty text in OpenAI's API, and null in llama.cpp's
        ("*", r'(\["content"\]|delta\.content) is None', r'\1 in (None, "")'),
        ("utils.py", r"(choice\['delta'\]\.get\('content'\)) is not None", r"\1"),
        # what the client may not ask of this model is its mistake, and no failure of the server
        ("test_compat_anthropic.py", "res.status_code == 500", "res.status_code == 400"),
        # the prefix cache keeps blocks of 16 tokens
        ("test_chat_completion.py", r'6", 77, 0\)', f'6", {CHAT_TOKENS}, 0)'),
        ("test_chat_completion.py", r", 77, 76\)", f", {CHAT_TOKENS}, {CACHED_TOKENS})"),
        ("test_chat_completion.py", r", 77, (51|47)\)", f", {CHAT_TOKENS}, {CACHED_TOKENS})"),
    ),
)

PROJECTS = {"llama.cpp": LLAMA_CPP, "vllm": VLLM}
