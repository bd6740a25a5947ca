/* Runs the blocks of a launch one after the other: the threads of each, then what of its memory becomes visible. */
#pragma once
#include "block.h"

/* --- threads ------------------------------------------------------------------------------------------------------------- */

#include "previous.h"

/* Exited threads count as arrived everywhere, but for the wait for the launch before. */
static void emu_exit(EmuThread *self) {
  EmuWarp *warp = self->warp;
  if (emu.hidden) emu_fault("a thread exits without a wait for the launch before");
  self->exited = true;
  warp->alive &= ~(1u << self->lane);
  --emu.num_alive;
  EmuBarrier *barrier = &emu.barriers[0];
  if (barrier->arrived) {
    if (emu.exits_fault) emu_fault("a thread exits while others wait at the barrier of line %d", barrier->line);
    if (barrier->arrived == emu.num_alive) emu_release(barrier);
  }
  for (int i = 0; i < warp->num_meetings; ++i) {
    EmuMeeting *meeting = &warp->meetings[i];
    if (meeting->arrived && meeting->arrived == (meeting->mask & warp->alive)) emu_meet(warp, meeting);
  }
}

/* What every stack runs: one thread after the other. A thread that never waits costs no change of stacks. */
static void emu_fiber(void) {
  for (;;) {
    emu.enter(emu.args);
    emu_exit(emu.current);
    if (!emu.num_alive) {
      emu_switch(&emu.idle[emu.num_idle++], emu.host_stack);
      continue;
    }
    EmuThread *next = emu_pick();
    if (!next->started) {
      next->started = true;
      emu.current = next;
      continue;
    }
    void *to = emu_stack_of(next);
    emu_switch(&emu.idle[emu.num_idle++], to);
  }
}

static void emu_make_stacks(void) {
  if (!emu.stacks) {
    const size_t bytes = (size_t)EMU_MAX_THREADS * EMU_STACK + (2 << 16);
    emu.stacks = (char *)mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    if (emu.stacks == (char *)MAP_FAILED) emu.stacks = 0;
    const size_t dynamic = EMU_MAX_DYNAMIC + (2 << 16);
    emu.dynamic_memory = (uint8_t *)mmap(0, dynamic, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (emu.dynamic_memory == (uint8_t *)MAP_FAILED) emu.dynamic_memory = 0;
    if (!emu.stacks || !emu.dynamic_memory) emu_fault("no memory for the stacks of %d threads", EMU_MAX_THREADS);
    if (mprotect(emu.stacks, 1 << 16, PROT_NONE)) emu_fault("mprotect failed"); /* below the first stack in use */
    if (mprotect(emu.dynamic_memory + EMU_MAX_DYNAMIC + (1 << 16), 1 << 16, PROT_NONE)) emu_fault("mprotect failed");
  }
  emu.num_idle = 0;
  /* Shifted against each other: stacks a power of two apart would share the same few lines of the cache. */
  for (int i = EMU_MAX_THREADS - 1; i >= 0; --i)
    emu.idle[emu.num_idle++] = emu_prepare_stack(emu.stacks + (1 << 16) + (size_t)(i + 1) * EMU_STACK - (i * 192) % 4096, emu_fiber);
  emu.stacks_ready = true;
}

/* --- launches ------------------------------------------------------------------------------------------------------------ */

static void emu_set_up(EmuLaunch *launch, const EmuKernel *kernel) {
  const unsigned *b = launch->block;
  emu.kernel = kernel;
  emu.enter = kernel->enter;
  emu.args = launch->args;
  emu.grid = EmuDim{launch->grid[0], launch->grid[1], launch->grid[2]};
  emu.block = EmuDim{b[0], b[1], b[2]};
  emu.num_threads = (int)(b[0] * b[1] * b[2]);
  emu.num_warps = (emu.num_threads + EMU_LANES - 1) / EMU_LANES;
  emu.schedule = launch->schedule;
  emu.random = launch->seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull;
  emu.late_copies = launch->late_copies != 0;
  emu.poison = launch->poison;
  emu.switches = 0;
  if (!emu.stacks_ready) emu_make_stacks();
  emu.dynamic_bytes = launch->dynamic_bytes;
  emu.dynamic = emu.dynamic_memory + ((EMU_MAX_DYNAMIC + (1 << 16) - launch->dynamic_bytes) & ~127u);
  for (int i = 0; i < emu.num_threads; ++i) {
    EmuThread *t = &emu.threads[i];
    t->linear = i;
    t->lane = i % EMU_LANES;
    t->warp = &emu.warps[i / EMU_LANES];
    t->index = EmuDim{i % b[0], i / b[0] % b[1], i / (b[0] * b[1])};
  }
}

static void emu_poison(const EmuKernel *kernel) {
  if (kernel->shared_start < kernel->shared_stop)
    memset(kernel->shared_start, emu.poison, (size_t)(kernel->shared_stop - kernel->shared_start));
}

static void emu_reset_block(void) {
  emu.num_alive = emu.num_threads;
  for (int w = 0; w < emu.num_warps; ++w) {
    EmuWarp *warp = &emu.warps[w];
    const int left = emu.num_threads - w * EMU_LANES;
    warp->index = w;
    warp->exists = warp->alive = warp->ready = left >= EMU_LANES ? ~0u : (1u << left) - 1;
    warp->num_meetings = 1;
    warp->meetings[0].mask = warp->exists;
    warp->meetings[0].arrived = 0;
  }
  for (int i = 0; i < emu.num_threads; ++i) {
    EmuThread *t = &emu.threads[i];
    t->started = t->exited = t->fenced = false;
    t->copies_begin = t->copies_end = 0;
    t->group = 0;
  }
  memset(emu.barriers, 0, sizeof emu.barriers);
  emu.barriers[0].all = 1;
  emu_watch_order();
  emu_poison(emu.kernel);
  emu_poison(emu.common);
  if (emu.dynamic_bytes) memset(emu.dynamic, emu.poison, emu.dynamic_bytes);
}

static void emu_run_block(uint64_t index) {
  emu.block_index.x = (unsigned)(index % emu.grid.x);
  emu.block_index.y = (unsigned)(index / emu.grid.x % emu.grid.y);
  emu.block_index.z = (unsigned)(index / ((uint64_t)emu.grid.x * emu.grid.y));
  emu_reset_block();
  EmuWarp *warp = &emu.warps[0];
  int lane = 0;
  if (emu.schedule == EMU_REVERSE) {
    warp = &emu.warps[emu.num_warps - 1];
    lane = 31 - __builtin_clz(warp->ready);
  } else if (emu.schedule == EMU_RANDOM) {
    warp = &emu.warps[emu_next_random() % (unsigned)emu.num_warps];
    lane = emu_bit_from(warp->ready, emu_next_random());
  }
  void *to = emu_stack_of(emu_take(warp, lane));
  emu_switch(&emu.host_stack, to);
}

#include "stores.h"

/* Blocks in the order of the schedule: no kernel may depend on it. */
static void emu_run_blocks(EmuLaunch *launch) {
  const uint64_t blocks = (uint64_t)emu.grid.x * emu.grid.y * emu.grid.z;
  /* a walk through all blocks: start anywhere, step by a number without a common factor */
  uint64_t at = 0, step = 1;
  if (launch->schedule == EMU_REVERSE) at = blocks - 1, step = blocks - 1;
  if (launch->schedule == EMU_RANDOM && blocks > 1) {
    at = emu_next_random() % blocks;
    for (;;) {
      step = emu_next_random() % blocks;
      uint64_t a = blocks, b = step;
      while (b) {
        const uint64_t r = a % b;
        a = b;
        b = r;
      }
      if (a == 1) break;
    }
  }
  for (uint64_t i = 0; i < blocks; ++i) {
    if (launch->late_stores) emu_begin_stores();
    if (launch->early) emu_hide();
    emu_run_block(at);
    if (launch->late_stores) emu_end_stores();
    at += step;
    if (at >= blocks) at -= blocks;
  }
}

/* A touch of memory that is nobody's: name the argument's memory that lies nearest. */
static void emu_on_signal(int signal, siginfo_t *info, void *) {
  const EmuLaunch *launch = emu.launch;
  if (!pthread_equal(pthread_self(), emu.host)) { /* another thread of the process has it */
    if (signal == SIGPROF) pthread_kill(emu.host, SIGPROF);
    else ::signal(signal, SIG_DFL);
    return;
  }
  if (signal == SIGPROF) emu_fault("the launch did not end within %d seconds", launch->seconds);
  const uint8_t *address = (const uint8_t *)info->si_addr;
  const char *kind = signal == SIGFPE ? "a division by zero" : signal == SIGILL ? "undefined behaviour" : "an access";
  if (signal == SIGFPE || signal == SIGILL) emu_fault("%s", kind);
  if ((const char *)address >= emu.stacks && (const char *)address < emu.stacks + (1 << 16)) emu_fault("a stack is too small");
  if (!address) emu_fault("an access at address 0, or one that is not aligned");
  const uint8_t *dynamic_end = emu.dynamic + emu.dynamic_bytes;
  if (address >= dynamic_end && address < dynamic_end + (1 << 16))
    emu_fault("an access %lld bytes past the %u bytes of dynamic shared memory", (long long)(address - dynamic_end),
              emu.dynamic_bytes);
  int nearest = -1;
  uint64_t distance = ~0ull;
  for (int i = 0; i < launch->num_regions; ++i) {
    const EmuRegion *r = &launch->regions[i];
    const uint64_t d = address >= r->data + r->bytes ? (uint64_t)(address - (r->data + r->bytes))
                       : address < r->data           ? (uint64_t)(r->data - address)
                                                     : 0;
    if (d < distance) distance = d, nearest = i;
  }
  if (nearest < 0 || distance > (1ull << 32)) emu_fault("an access at address %p, far from every buffer", (const void *)address);
  const EmuRegion *r = &launch->regions[nearest];
  if (emu.hidden && !distance) emu_fault("an access to buffer %d before the wait for the launch before", nearest);
  if (address < r->data) emu_fault("an access %llu bytes before buffer %d", (unsigned long long)distance, nearest);
  emu_fault("an access %llu bytes past the %llu bytes of buffer %d", (unsigned long long)distance,
            (unsigned long long)r->bytes, nearest);
}

static const int emu_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGPROF};
enum { EMU_SIGNALS = sizeof emu_signals / sizeof emu_signals[0] };

/* 0, or 1 with a report. Not for two host threads at a time. */
static int emu_launch(EmuLaunch *launch, const EmuKernel *kernel, const EmuKernel *common) {
  static char signal_stack[1 << 16];
  stack_t old_stack, stack;
  struct sigaction old[EMU_SIGNALS], action;
  memset(&action, 0, sizeof action);
  memset(&stack, 0, sizeof stack);
  action.sa_sigaction = emu_on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  stack.ss_sp = signal_stack;
  stack.ss_size = sizeof signal_stack;
  const struct itimerval limit = {{0, 0}, {launch->seconds, 0}}, none = {{0, 0}, {0, 0}};
  emu.host = pthread_self();
  emu.launch = launch;
  emu.common = common;
  emu.current = 0;
  emu.hidden = false;
  launch->report[0] = 0;
  volatile int failed = 0;
  sigaltstack(&stack, &old_stack);
  for (int i = 0; i < EMU_SIGNALS; ++i) sigaction(emu_signals[i], &action, &old[i]);
  setitimer(ITIMER_PROF, &limit, 0);
  if (sigsetjmp(emu.escape, 1) == 0) {
    emu_set_up(launch, kernel);
    emu_run_blocks(launch);
    if (launch->late_stores) emu_land_stores();
  } else {
    failed = 1;
    emu_reveal();
    emu.stacks_ready = false;
  }
  setitimer(ITIMER_PROF, &none, 0);
  for (int i = 0; i < EMU_SIGNALS; ++i) sigaction(emu_signals[i], &old[i], 0);
  sigaltstack(&old_stack, 0);
  launch->threads = (uint64_t)emu.num_threads * emu.grid.x * emu.grid.y * emu.grid.z;
  launch->switches = emu.switches;
  return failed;
}
