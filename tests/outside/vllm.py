"""vLLM's tests of its OpenAI server: what of them applies, and what a harness changes in them."""

from __future__ import annotations

from tests.outside.lists import Project

_ADAPTER = "names an adapter (LoRA); the same test of the model itself counts"
_FIELD = "names a field, route or flag that only vLLM has"
_INSIDE = "calls vLLM's own classes, and no server"
_ABLE = "needs a model that reasons, calls or answers sensibly of itself"

VLLM = Project(
    name="vLLM",
    package="vllm",
    plugin="outside_vllm",
    tests="tests/entrypoints",
    within="tests/entrypoints",
    files=(
        "openai/chat_completion/test_chat.py",
        "openai/chat_completion/test_chat_completion.py",
        "openai/chat_completion/test_chat_echo.py",
        "openai/chat_completion/test_chat_logit_bias_validation.py",
        "openai/chat_completion/test_completion_with_function_calling.py",
        "openai/chat_completion/test_enable_force_include_usage.py",
        "openai/chat_completion/test_include_reasoning.py",
        "openai/chat_completion/test_logprob_token_ids.py",
        "openai/chat_completion/test_root_path.py",
        "openai/chat_completion/test_thinking_token_budget.py",
        "openai/completion/test_completion.py",
        "openai/completion/test_prompt_validation.py",
        "openai/completion/test_token_in_token_out.py",
        "openai/models/test_models.py",
        "openai/responses/test_basic.py",
        "openai/responses/test_function_call.py",
        "openai/responses/test_simple.py",
        "openai/responses/test_stateful.py",
        "openai/responses/test_structured_output.py",
        "openai/test_chunked_prompt.py",
        "openai/test_return_token_ids.py",
        "openai/test_return_tokens_as_ids.py",
    ),
    others="Its other files there call its own classes, are about routes of its own (batched chats, decisions, embeddings of "
    "prompts), or need gpt-oss, its tools, or a model that sees. Its run of Schemathesis is `tests/server/test_openapi_fuzz.py`.",
    excluded=(
        (r"lora", _ADAPTER),
        (r"test_check_models", "lists adapters (LoRA) beside the model"),
        (r"prompt_logprobs|logprob_token_ids(\[|_stream|_returns|$)|truncation_side|kv_transfer|per_request_metrics", _FIELD),
        (r"_request_|rejects?_explicit|null_top_logprobs|load_prompt_embeds|disable_prompt_embeds", _INSIDE),
        (r"responses_api_logprobs_with_return_tokens", _INSIDE),
        (r"stream_options|force_include_usage|test_batch_completions|echo_and_continue|test_top_logprobs", _FIELD),
        (r"test_token_in_token_out|test_return_token|test_invocations|test_empty_prompt", _FIELD),
        (r"watermarked|enable_response_messages|extra_sampling_params|include_reasoning_(true|false)", _FIELD),
        (r"test_reasoning_tokens_in_usage|thinking_token_budget_|qwen35", _FIELD),
        (r"response_format_json|complex_message_content|default_includes_reasoning|reasoning_tokens_e2e", _ABLE),
        (r"test_basic\.py::test_(simple_input|instructions|chat)$|previous_response_id|same_prev_id", _ABLE),
        (r"test_structured_output\.py|test_function_tool_use\[.*(auto|True-(required|tool_choice2))", _ABLE),
        (r"responses/test_function_call\.py::test_function_tool_use|streaming_expected_arguments", _ABLE),
        (r"forced_tool_choice\[auto|test_reasoning_item", _ABLE),
    ),
    renames=(
        ("test_chat_logit_bias_validation.py", r"get_vocab_size\(MODEL_NAME\)", "768"),
        ("test_root_path.py", r'finish_reason == "stop"', 'finish_reason in ("stop", "length")'),
        # the words of errors
        ("test_prompt_validation.py", r'"\.\*out of vocabulary\.\*"', '"token"'),
        ("test_chat.py", r'"greater_than_equal" in', '"seed" in'),
        ("test_stateful.py", r"background can only be used when `store` is true", "background"),
        # what their models say, count, and how long they speak
        ("test_simple.py", r"max_output_tokens=30", "max_output_tokens=1"),
        ("test_chat.py", r"usage == openai\.types\.CompletionUsage\(.*?\)", "usage.completion_tokens == 5"),
        ("test_completion.py", r"usage\.(prompt_tokens == 5|total_tokens == 10)", "usage.prompt_tokens > 0"),
        ("*", r'assert (choice|ip)1 != (choice|ip)2|assert json1\["(name|age)"\] != json2\["(name|age)"\]', "pass"),
        # the answer's fields that only vLLM has
        ("test_completion.py", r"assert completion\.choices\[0\]\.prompt_logprobs is None", "pass"),
        # vLLM's last piece of a stream has a text; that of OpenAI's API has none
        ("test_chat.py", r"assert delta\.content\n", "pass\n"),
    ),
)
