"""The pool of threads: one that keeps the others waiting rests, and comes back when it is in time again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ferrum.codegen.render import TEMPLATES
from ferrum.codegen.target import BY_NAME
from ferrum.codegen.toolchains.cxx import find_compiler

LIB = TEMPLATES / "cpu" / "lib"
# argv: pairs of a thread that is late in every step (-1: none) and a number of steps. Prints how many steps each thread took
# part in, a line for each pair.
PROGRAM = r"""
#include <stdint.h>
#include <stdio.h>
#define LANES 4
#define SIMD_sse2 1
%s
%s
static Pool pool;
static int late, steps[3];
static void work(void *argument, int thread) {
  (void)argument;
  for (int phase = 0; phase < 2; ++phase) {
    if (thread == late) nanosleep(&(struct timespec){0, 10000000}, NULL);
    barrier_wait(&pool, thread);
  }
  steps[thread]++;
}
int main(int argc, char **argv) {
  const int32_t anywhere[3] = {-1, -1, -1};
  if (pool_start(&pool, 3, anywhere, 100, work, NULL)) return 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    late = atoi(argv[i]);
    memset(steps, 0, sizeof steps);
    for (int n = atoi(argv[i + 1]); n; --n) pool_run(&pool, 0);
    pool_run(&pool, 1); /* everyone has left the step before its count is read */
    for (int thread = 0; thread < 3; ++thread) printf("%%d ", steps[thread] - 1);
    puts("");
  }
  pool_stop(&pool, 3);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    (folder / "pool.c").write_text(PROGRAM % ((LIB / "simd.h").read_text(), (LIB / "pool.h").read_text()))
    compiler = find_compiler("x86_64")
    flags = [f for f in compiler.flags(BY_NAME["cpu-x86_64"]) if f not in ("-shared", "-fPIC", "-Wall")]
    subprocess.run([*compiler.command, *flags, "-w", folder / "pool.c", "-o", folder / "pool"], check=True)
    return folder / "pool"


def run(program: Path, *pairs: int) -> list[list[int]]:
    done = subprocess.run([program, *map(str, pairs)], capture_output=True, text=True, check=True, timeout=60)
    return [[int(n) for n in line.split()] for line in done.stdout.splitlines()]


def test_a_late_thread_rests_and_is_tried_again(program: Path) -> None:
    ((caller, late, other),) = run(program, 1, 3 + 8 + 1 + 16)
    assert caller == 28
    assert late <= 3 + 1 + 1  # three steps that show it, one that tries it; and one by chance
    assert other > late  # beside other tests it may rest by chance, too


def test_a_late_caller_sends_the_last_thread_to_rest(program: Path) -> None:
    ((caller, other, last),) = run(program, 0, 3 + 8)
    assert caller == 11
    assert last <= 3 + 1
    assert other >= last


def test_a_thread_in_time_comes_back(program: Path) -> None:
    _, (caller, first, second) = run(program, 2, 12, -1, 400)
    assert caller == 400
    assert first and second
