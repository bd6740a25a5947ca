/* A block of a launch: its threads are fibers on one host thread, one of which runs until it reaches a collective or a barrier;
   then the schedule picks the next. All state is static in the compiled source, so the address of everything is a constant. Only
   headers of C are used: this must build without a C++ library.

   A meeting is a warp's rendezvous for one mask. Every lane leaves a pointer to its operands, which lie on its own stack;
   the last one to arrive reads all of them and writes all results there, then the others go on. */
#pragma once
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>
#include "switch.h"

#define FERRUM_EMULATE 1

enum {
  EMU_LANES = 32,
  EMU_MAX_WARPS = 32,
  EMU_MAX_THREADS = EMU_LANES * EMU_MAX_WARPS,
  EMU_MEETINGS = 33, /* one for each lane alone and one for all, if a kernel should want it */
  EMU_BARRIERS = 16,
  EMU_MAX_COPIES = 128,
  EMU_MAX_DYNAMIC = 256 << 10,
  EMU_REPORT = 4096,
};
#if defined(__SANITIZE_ADDRESS__)
#define EMU_STACK (256 << 10)
#else
#define EMU_STACK (64 << 10)
#endif

enum { EMU_FORWARD, EMU_REVERSE, EMU_RANDOM };

struct EmuDim {
  unsigned x, y, z;
};

/* What the host passes; mirrored by ferrum/devices/emulate/module.py. */
struct EmuRegion {
  uint8_t *data;
  uint64_t bytes;
  uint64_t constant; /* no launch of a step writes it */
};

struct EmuLaunch {
  unsigned grid[3], block[3];
  unsigned dynamic_bytes;
  int32_t schedule;
  uint64_t seed;
  int32_t late_copies;  /* asynchronous copies land when they are waited for, not at the call */
  int32_t late_stores;  /* stores to global memory are seen by other blocks after a fence or at the end only */
  int32_t poison;       /* the byte that fills shared memory before each block */
  int32_t num_regions;
  int32_t seconds; /* of processor time, after which the launch is given up; 0 is no limit */
  int32_t early;   /* it may start before the launch in front of it has ended: see previous.h */
  void **args;
  const EmuRegion *regions; /* global memory of the arguments, for reports and late stores */
  uint8_t *shadow;          /* with late_stores: three times the bytes of all regions */
  char *report;             /* EMU_REPORT bytes */
  uint64_t threads, switches; /* counted here */
};

struct EmuKernel {
  const char *name;
  void (*enter)(void **args);
  uint8_t *shared_start, *shared_stop;
  unsigned max_threads; /* of __launch_bounds__, 0 when there are none */
  int num_params;
  const int *param_bytes; /* negative for pointers */
};

typedef void (*EmuLast)(void **operands, uint32_t lanes);

struct EmuMeeting {
  uint32_t mask, arrived;
  const char *what;
  EmuLast last;
  void *operands[EMU_LANES];
};

struct EmuWarp {
  uint32_t exists, alive, ready;
  int index, num_meetings;
  EmuMeeting meetings[EMU_MEETINGS];
};

struct EmuCopy {
  uint8_t *to;
  const uint8_t *from;
  uint64_t group;
  unsigned bytes, source_bytes;
};

struct EmuThread {
  void *stack;
  EmuDim index;
  int linear, lane;
  EmuWarp *warp;
  const char *waits_for;
  int line;
  bool started, exited, fenced;
  unsigned copies_begin, copies_end; /* positions in its ring, counted without end */
  uint64_t group;
};

/* Threads waiting at a barrier of the block, a mask per warp. */
struct EmuBarrier {
  int arrived, expected, line;
  uint32_t waiting[EMU_MAX_WARPS];
  int any, all, count;
  int last_any, last_all, last_count;
};

struct EmuState {
  EmuThread *current;
  EmuDim block_index, block, grid;
  int num_threads, num_warps, num_alive;
  int schedule;
  uint64_t random;
  bool late_copies, exits_fault;
  bool hidden; /* memory that the launch before may still write */
  int poison;
  uint8_t *dynamic; /* start of dynamic shared memory; a page that cannot be touched follows its last byte */
  unsigned dynamic_bytes;
  void (*enter)(void **args);
  void **args;
  void *host_stack;
  uint64_t switches;
  int num_idle;
  const EmuKernel *kernel, *common; /* common: shared variables outside of kernels */
  EmuLaunch *launch;
  sigjmp_buf escape;
  pthread_t host;
  void *idle[EMU_MAX_THREADS];
  EmuBarrier barriers[EMU_BARRIERS], previous;
  EmuThread threads[EMU_MAX_THREADS];
  EmuWarp warps[EMU_MAX_WARPS];
  EmuCopy copies[EMU_MAX_THREADS][EMU_MAX_COPIES];
  char *stacks;
  uint8_t *dynamic_memory;
  bool stacks_ready;
};
static EmuState emu;

#define EMU_NOINLINE __attribute__((noinline))
#define EMU_COLD __attribute__((noinline, cold, noreturn, format(printf, 1, 2)))

/* --- faults ------------------------------------------------------------------------------------------------------------ */

static void emu_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void emu_say(const char *format, ...) {
  char *report = emu.launch->report;
  const size_t used = strlen(report);
  va_list args;
  va_start(args, format);
  vsnprintf(report + used, EMU_REPORT - used, format, args);
  va_end(args);
}

static void emu_say_where(void) {
  emu_say(" · block (%u, %u, %u)", emu.block_index.x, emu.block_index.y, emu.block_index.z);
  if (emu.current) emu_say(" thread (%u, %u, %u)", emu.current->index.x, emu.current->index.y, emu.current->index.z);
}

/* End the launch: what is wrong, then where. Every fiber is abandoned where it stands. */
static void emu_fault(const char *format, ...) EMU_COLD;
static void emu_fault(const char *format, ...) {
  char *report = emu.launch->report;
  va_list args;
  va_start(args, format);
  vsnprintf(report, EMU_REPORT, format, args);
  va_end(args);
  emu_say_where();
  siglongjmp(emu.escape, 1);
}

/* No thread can go on: say who waits where, runs of neighbours as one. */
static void emu_deadlock(void) __attribute__((noinline, cold, noreturn));
static void emu_deadlock(void) {
  emu.launch->report[0] = 0;
  emu_say("no thread can go on");
  for (int i = 0, j; i < emu.num_threads; i = j) {
    const EmuThread *t = &emu.threads[i];
    for (j = i + 1; j < emu.num_threads; ++j) {
      const EmuThread *u = &emu.threads[j];
      if (u->exited != t->exited || (!t->exited && (u->waits_for != t->waits_for || u->line != t->line))) break;
    }
    emu_say("; thread");
    if (j - i > 1) emu_say("s %d to %d", i, j - 1);
    else emu_say(" %d", i);
    if (t->exited) emu_say(" exited");
    else if (t->line) emu_say(" in %s at line %d", t->waits_for, t->line);
    else emu_say(" in %s", t->waits_for);
    if (strlen(emu.launch->report) > EMU_REPORT / 2) {
      emu_say("; ...");
      break;
    }
  }
  emu.current = 0;
  emu_say_where();
  siglongjmp(emu.escape, 1);
}

#include "races.h"

/* --- schedule ---------------------------------------------------------------------------------------------------------- */

static inline uint32_t emu_next_random(void) {
  emu.random ^= emu.random << 13;
  emu.random ^= emu.random >> 7;
  emu.random ^= emu.random << 17;
  return (uint32_t)(emu.random >> 16);
}

/* The set bit at or after `start`, wrapping around; below it in reverse. */
static inline int emu_bit_from(uint32_t bits, unsigned start) {
  start &= 31;
  const uint32_t turned = start ? bits >> start | bits << (32 - start) : bits;
  return (int)((__builtin_ctz(turned) + start) & 31);
}
static inline int emu_bit_before(uint32_t bits, unsigned start) {
  start &= 31;
  const uint32_t turned = start ? bits << (32 - start) | bits >> start : bits;
  return (int)((31 - __builtin_clz(turned) + start) & 31);
}

static inline EmuThread *emu_take(EmuWarp *warp, int lane) {
  warp->ready &= ~(1u << lane);
  return &emu.threads[warp->index * EMU_LANES + lane];
}

static uint32_t emu_ready_warps(void) {
  uint32_t ready = 0;
  for (int w = 0; w < emu.num_warps; ++w) ready |= (uint32_t)(emu.warps[w].ready != 0) << w;
  return ready;
}

static EMU_NOINLINE EmuThread *emu_pick_far(void) {
  const uint32_t warps = emu_ready_warps();
  if (!warps) emu_deadlock();
  const EmuThread *from = emu.current;
  EmuWarp *warp = from->warp;
  if (emu.schedule == EMU_FORWARD) {
    if (warp->ready) return emu_take(warp, __builtin_ctz(warp->ready));
    warp = &emu.warps[emu_bit_from(warps, (unsigned)warp->index + 1)];
    return emu_take(warp, __builtin_ctz(warp->ready));
  }
  if (emu.schedule == EMU_REVERSE) {
    if (!warp->ready) warp = &emu.warps[emu_bit_before(warps, (unsigned)warp->index)];
    return emu_take(warp, 31 - __builtin_clz(warp->ready));
  }
  const uint32_t r = emu_next_random();
  warp = &emu.warps[emu_bit_from(warps, r >> 8)];
  return emu_take(warp, emu_bit_from(warp->ready, r));
}

/* The next thread to run, taken out of the ready ones. Forward and reverse stay in a warp while it can go on, random does
   not. The neighbour is tried first, by a branch: a processor that guesses it need not wait for the mask. */
static inline EmuThread *emu_pick(void) {
  EmuThread *from = emu.current;
  EmuWarp *warp = from->warp;
  if (emu.schedule == EMU_FORWARD) {
    const uint32_t bit = 2u << from->lane;
    if (warp->ready & bit) {
      warp->ready &= ~bit;
      return from + 1;
    }
  } else if (emu.schedule == EMU_REVERSE) {
    const uint32_t bit = (1u << from->lane) >> 1;
    if (warp->ready & bit) {
      warp->ready &= ~bit;
      return from - 1;
    }
  }
  return emu_pick_far();
}

/* Where `next` goes on: its own stack, or a fresh one when it has not run yet. */
static inline void *emu_stack_of(EmuThread *next) {
  emu.current = next;
  ++emu.switches;
  if (next->started) return next->stack;
  next->started = true;
  return emu.idle[--emu.num_idle];
}

/* Leave the current thread until somebody wakes it. */
static inline __attribute__((always_inline)) void emu_wait(const char *what, int line) {
  EmuThread *self = emu.current;
  self->waits_for = what;
  self->line = line;
  EmuThread *next = emu_pick();
  emu_switch(&self->stack, emu_stack_of(next));
}

/* --- barriers of the block --------------------------------------------------------------------------------------------- */

static void emu_release(EmuBarrier *barrier) {
  barrier->last_any = barrier->any;
  barrier->last_all = barrier->all;
  barrier->last_count = barrier->count;
  /* on Metal a barrier orders memory when it is told to */
  if (!emu.exits_fault || barrier->any) emu_watch_order();
  barrier->any = barrier->count = 0;
  barrier->all = 1;
  barrier->arrived = 0;
  for (int w = 0; w < emu.num_warps; ++w) {
    emu.warps[w].ready |= barrier->waiting[w];
    barrier->waiting[w] = 0;
  }
}

static EMU_NOINLINE EmuBarrier *emu_block_barrier(const char *what, int predicate, int line) {
  EmuBarrier *barrier = &emu.barriers[0];
  EmuThread *self = emu.current;
  if (emu.exits_fault && emu.num_alive != emu.num_threads) emu_fault("%s at line %d after threads have exited", what, line);
  if (barrier->arrived && barrier->line != line)
    emu_fault("threads of one block wait at different barriers, at lines %d and %d", barrier->line, line);
  barrier->line = line;
  barrier->any |= predicate != 0;
  barrier->all &= predicate != 0;
  barrier->count += predicate != 0;
  if (++barrier->arrived == emu.num_alive) {
    emu_release(barrier);
  } else {
    barrier->waiting[self->warp->index] |= 1u << self->lane;
    emu_wait(what, line);
  }
  return barrier;
}

/* --- meetings of a warp ------------------------------------------------------------------------------------------------ */

static EmuMeeting *emu_meeting(EmuWarp *warp, uint32_t mask) {
  for (int i = 0; i < warp->num_meetings; ++i)
    if (warp->meetings[i].mask == mask) return &warp->meetings[i];
  if (warp->num_meetings == EMU_MEETINGS) emu_fault("more than %d different masks in one warp", EMU_MEETINGS);
  EmuMeeting *meeting = &warp->meetings[warp->num_meetings++];
  meeting->mask = mask;
  meeting->arrived = 0;
  return meeting;
}

static inline void emu_meet(EmuWarp *warp, EmuMeeting *meeting) {
  const uint32_t lanes = meeting->arrived;
  meeting->arrived = 0;
  emu_watch_last(1);
  meeting->last(meeting->operands, lanes);
  emu_watch_last(-1);
  warp->ready |= lanes;
}

/* All lanes of the mask meet. `operands` points to this lane's operands, where its result is found afterwards. */
static EMU_NOINLINE void emu_collective(uint32_t mask, const char *what, void *operands, EmuLast last) {
  EmuThread *self = emu.current;
  EmuWarp *warp = self->warp;
  const uint32_t bit = 1u << self->lane;
  mask &= warp->exists;
  if (!(mask & bit)) emu_fault("%s with a mask that lacks the calling lane", what);
  EmuMeeting *meeting = warp->meetings;
  if (meeting->mask != mask) meeting = emu_meeting(warp, mask);
  if (meeting->arrived && (meeting->last != last || meeting->what != what)) emu_fault("lanes of one warp meet in %s and in %s", meeting->what, what);
  meeting->what = what;
  meeting->last = last;
  meeting->operands[self->lane] = operands;
  meeting->arrived |= bit;
  if (meeting->arrived == (mask & warp->alive)) {
    emu_meet(warp, meeting);
    emu_take(warp, self->lane); /* the last one goes on at once */
  } else {
    emu_wait(what, 0);
  }
}
