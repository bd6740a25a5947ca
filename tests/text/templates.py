"""Chat templates in the styles of public models, written for these tests."""

from __future__ import annotations

CHATML = """
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "You have access to the following functions.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\\n\\n' ~ message['content'] | trim ~ '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN3 = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and
        not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n'
                + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

MISTRAL = """
{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'tool' or message['role'] == 'system' %}{% continue %}{% endif %}
{% if (message['role'] == 'user') != (ns is defined and false or loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' ~ message['content'] ~ ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ message['content'] ~ eos_token }}{% endif %}
{% if loop.index > 8 %}{% break %}{% endif %}
{% endfor %}
"""

MACROS = """
{%- macro show(value, depth=0) -%}
    {%- if value is mapping -%}
        {%- for key, item in value.items() -%}{{ '  ' * depth }}{{ key }}: {{ show(item, depth + 1) }};{%- endfor -%}
    {%- elif value is sequence and value is not string -%}{{ value | map('string') | join(', ') }}
    {%- else -%}{{ value | default('none', true) | upper }}{%- endif -%}
{%- endmacro %}
{%- set found = messages | selectattr('role', 'equalto', 'user') | list -%}
{{ found | length }}|{{ show(tools[0] if tools else {}) }}|{{ dict(a=1, b=[1, 2.5, none, true]) | tojson }}
{% generation %}{{ messages[-1].content | replace('a', 'b') | title }}{% endgeneration %}
{%- for m in messages | reverse %}{{ loop.revindex }}{{ loop.length }}{{ loop.cycle('x', 'y') }}{% endfor -%}
{{ '%s-%d' | format(messages[0].role, 3) }} {{ "%05.1f" % 2.25 }} {{ [3, 1, 2] | sort | join('') }}
{{ messages[0] | tojson(indent=2) }}
{{ ['b', 'a'] | unique | list }} {{ 'long text here' | indent(2, first=true) }} {{ 7 // 2 ** 2 }} {{ 'x' in 'xyz' }} {{ (1, 2) }}
"""

NAMESPACES = """
{%- macro shown(value, ns) -%}
    {%- for key, each in value | dictsort %}{{ key }}={{ each | tojson }};{% endfor -%}
    {%- set ns.seen = ns.seen + 1 -%}
{%- endmacro -%}
{%- for message in messages -%}
    {%- set ns = namespace(seen=0, names=[]) -%}
    {%- for call in message.tool_calls or [] -%}
        {%- set ns.names = ns.names + [call.function.name] -%}
        [{{ call.function.name }} {{ shown(call.function.arguments, ns) }}{{ range(2) | list | length }}]
    {%- endfor -%}
    <{{ message.role }}>{{ message.content or '' }}{{ ns.names | join(',') }}{{ ns.seen }}
    {{- message.name if message.role == 'tool' }}
{% endfor -%}
{%- if add_generation_prompt %}{{ cycler('<assistant>', 'x').next() }}{% endif -%}
"""

NULL_AND_TEXT = """
{{ bos_token }}{% set ns = namespace(first=true) %}{% for m in messages %}
{% if m['role'] == 'system' or m['role'] == 'user' %}{{ '<U>' + m['content'] }}{% endif %}
{% if m['role'] == 'assistant' and m['content'] is none %}{% for c in m['tool_calls'] %}
{{ '<C>' + c['type'] + '|' + c['function']['name'] + '|' + c['function']['arguments'] + '</C>' }}{% endfor %}{% endif %}
{% if m['role'] == 'assistant' and m['content'] is not none %}{% set c = m['content'] %}
{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}{{ '<A>' + c + eos_token }}{% endif %}
{% if m['role'] == 'tool' %}{{ '<T>' + m['content'] }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<A><think>\\n' }}{% endif %}
"""

CALLS_IF_DEFINED = """
{%- for m in messages -%}
{%- if m.tool_calls is defined -%}
    {%- if m.tool_calls | length == 0 %}{{ raise_exception('calls without calls') }}{% endif -%}
    {%- for c in m.tool_calls -%}
        {%- if c.id is not defined or c.id | length != 9 %}{{ raise_exception('ids must have length 9') }}{% endif -%}
        [CALLS]{{ c.function | tojson }}{{ c.id }}
    {%- endfor -%}
{%- elif m.role == 'tool' %}[RESULT]{{ m.tool_call_id }}{{ m.content }}
{%- else %}[{{ m.role | upper }}]{{ m.content }}
{%- endif -%}
{%- endfor -%}
"""

PARTS = """
{%- for m in messages -%}
<{{ m.role }}>
{%- if m.content is string -%}[{{ m.content }}]
{%- elif m.content -%}{% for part in m.content %}{% if part.type == 'text' %}[{{ part.text }}]{% endif %}{% endfor %}
{%- endif -%}
{%- for c in m.tool_calls or [] -%}
    {{ c.function.name }}(
    {%- for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% if not loop.last %}, {% endif %}{% endfor %})
{%- endfor -%}
{%- if loop.last %}{% break %}{% endif -%}
{%- endfor -%}
{% generation %}{% set hidden = 1 %}{{ hidden }}{% endgeneration %}{{ hidden is defined }}
"""

ONLY_PARTS = "{% for m in messages %}<{{ m.role }}>{{ m.content[0].text }}{% endfor %}"

STYLES = {
    "chatml": CHATML, "llama3": LLAMA3, "qwen3": QWEN3, "mistral": MISTRAL, "macros": MACROS, "namespaces": NAMESPACES,
    "null and text": NULL_AND_TEXT, "calls if defined": CALLS_IF_DEFINED, "parts": PARTS,
}  # fmt: skip
