"""Hostile chat templates, and a program that lets some of them loose: ``python -m tests.text.bombs STEP`` every STEPth."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

from ferrum.text.frames import parsed, read_frame, write_frame

BOMBS = [
    "{{ (1).to_bytes(1000000000)|length }}",
    "{{ (65).to_bytes(1) * 1000000000 }}",
    "{{ ('a'.encode() * 1000000000)|length }}",
    "{{ ('a'*100000).encode().decode('punycode') }}",
    "{{ ('xn--' ~ 'a'*1000000).encode().decode('idna') }}",
    "{{ range(100000)|list|tojson(separators=('a'*100000, ':')) }}",
    "{{ range(99999)|list|tojson(indent=100000) }}",
    "{{ ''.join(['a'*1000000]*1000)|length }}",
    "{{ ('%s'*1000000) % (('a'*1000,)*1000000) }}",
    "{{ 'a'|wordwrap(1000000000) }}{{ ('a '*9000000)|wordwrap(1)|length }}",
    "{{ range(100000)|batch(1000000000, 'a')|list|length }}",
    "{{ range(100000)|slice(100000, 'a')|list|length }}",
    "{{ [[0]*100000]|sum(start=[0]*90000000) }}",
    "{{ '%s' | format('a'*1000000000) }}",
    "{{ 'a'|indent(1000000000) }}{{ 'a'|indent(width=1000000000, first=true)|length }}",
    "{{ ('a'*10000000)|title|upper|lower|capitalize|urlencode|urlize|striptags|escape|length }}{{ 1/0 }}",
    "{{ cycler(*range(100000))|string }}{% for i in range(100000) %}{% for j in range(1000) %}x{% endfor %}{% endfor %}",
    "{{('a'*1000000000)|length}}",
    "{{ ('a'*1000)*1000000000 }}",
    "{{ [0]*1000000000 }}",
    "{{ (range(100000)|list)*100000 }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ 'a'|center(1000000000) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ 9**(9**9) }}",
    "{{ 1.5|round(1000000000, 'ceil') }}",
    "{{ range(1000000000) }}",
    "{{ [[1]]|tojson(indent=1000000000) }}",
    "{{ ('a'*100000)|replace('a', 'b'*100000) }}",
    "{{ ('a'*100000).replace('a', 'b'*100000) }}",
    "{{ ('b'*1000000).join('a'*100000) }}",
    "{% set x = 'a'*1000000 %}{{ ''.join([x]*10000) }}",
    "{% set x = 'a'*1000000 %}{{ [x]*10000 }}",
    "{{ ('a '*8000000).split(' ')|length }}",
    "{{ ('a'*16000000)|list|length }}",
    "{% set ns=namespace(x='a') %}{% for i in range(100) %}{% set ns.x=ns.x~ns.x %}{% endfor %}{{ns.x|length}}",
    "{% set ns=namespace(x='a') %}{% for i in range(100) %}{% set ns.x=ns.x+ns.x %}{% endfor %}{{ns.x|length}}",
    "{% set ns=namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x=ns.x+ns.x %}{% endfor %}{{ns.x|length}}",
    "{% set ns=namespace(x=['a']) %}{% for i in range(100) %}{% set ns.x=[ns.x,ns.x] %}{% endfor %}{{ns.x}}",
    "{% set ns=namespace(x=('a',)) %}{% for i in range(100) %}{% set ns.x=(ns.x,ns.x) %}{% endfor %}{{ns.x==ns.x}}",
    "{% set ns=namespace(x={}) %}{% for i in range(100) %}{% set ns.x={'a':ns.x,'b':ns.x} %}{% endfor %}{{ns.x|tojson}}",
    "{% set ns=namespace(x={}) %}{% for i in range(100) %}{% set ns.x=dict(a=ns.x,b=ns.x) %}{% endfor %}{{ns.x|tojson}}",
    "{% set ns=namespace(x=9) %}{% for i in range(100) %}{% set ns.x=ns.x*ns.x %}{% endfor %}{{ns.x}}",
    "{% for i in range(100000) %}{{ 'a'*1000000 }}{% endfor %}",
    "{% set x %}{% for i in range(100000) %}{{ 'a'*100000 }}{% endfor %}{% endset %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% for i in [1,1] recursive %}{% if loop.depth<60 %}{{ loop([1,1]) }}{% endif %}{% endfor %}",
    "{{ [range(100000)|list|string]*1000 }}",
    "{{ strftime_now('%1000000000d') }}",
    "{{ ([range(100000)|list]*100)|sum(start=[])|length }}",
    "{% set o = namespace() %}{% set p = namespace(a=[o, o]) %}{{ p }}",
    "{% macro m(n) %}{% set x = 'a' * 9000000 ~ n %}{{ m(n + 1) }}{{ x|length }}{% endmacro %}{{ m(1) }}",
    "{% set y = 'é' * 9000000 %}{% macro m(n) %}{% set x = y[n:] %}{{ m(n + 1) }}{{ x|length }}{% endmacro %}{{ m(1) }}",
    "{% macro m(n) %}{% set x %}{{ 'a' * 9000000 }}{% endset %}{{ m(n + 1) }}{{ x|length }}{% endmacro %}{{ m(1) }}",
    "{% macro m(n) %}{% set x = range(90000)|list %}{{ m(n + 1) }}{{ x|length }}{% endmacro %}{{ m(1) }}",
    "{% macro m(n) %}{% set x = ('a' * 9000000)|upper %}{{ m(n + 1) }}{{ x|length }}{% endmacro %}{{ m(1) }}",
]


def ending(source: str) -> tuple[str, int, float]:
    """How the template's process ended, its most memory in KiB, and its processor time in seconds."""
    command = [sys.executable, "-m", "ferrum.text.template_worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        said = "killed"
        messages = [{"role": "user", "content": "hi"}]
        asked = {"messages": messages, "tools": None, "add_generation_prompt": True, "options": {}}
        for request in ({"templates": {"default": source}, "special_tokens": {}}, asked):
            try:
                write_frame(child.stdin, request)
                frame = read_frame(child.stdout)
            except BrokenPipeError:
                frame = None
            if frame is None:
                said = "killed"
                break
            answer = parsed(frame)
            said = answer["error"][0] if "error" in answer else "text"
            if "error" in answer:
                break
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        usage = os.wait4(child.pid, 0)[2]  # here, not in the test: a process begins with the peak of the one that started it
        child.returncode = 0
    return said, usage.ru_maxrss, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(json.dumps([ending(source) for source in ("{{ messages[0].content }}", *BOMBS[:: int(sys.argv[1])])]))
