/* Named barriers and mbarriers. */
#pragma once

static void emu_arrive(int id, int threads, bool wait, const char *what) {
  if (id < 1 || id >= EMU_BARRIERS) emu_fault("%s with barrier %d", what, id);
  if (threads <= 0 || threads % EMU_LANES || threads > emu.num_threads) emu_fault("%s for %d threads", what, threads);
  EmuBarrier *barrier = &emu.barriers[id];
  EmuThread *self = emu.current;
  if (barrier->arrived && barrier->expected != threads)
    emu_fault("barrier %d is for %d threads here and for %d there", id, threads, barrier->expected);
  barrier->expected = threads;
  if (++barrier->arrived == threads) {
    emu_release(barrier);
  } else if (wait) {
    barrier->waiting[self->warp->index] |= 1u << self->lane;
    emu_wait(what, 0);
  }
}
static void emu_barrier(int id, int threads) { emu_arrive(id, threads, true, "bar.sync"); }
static void emu_barrier_arrive(int id, int threads) { emu_arrive(id, threads, false, "bar.arrive"); }

/* The word: phase in bit 63, arrivals of this phase in bits 32 to 62, arrivals that complete one in the low half. */
static void emu_mbarrier_init(unsigned long long *barrier, unsigned count) {
  if ((uintptr_t)barrier % 8) emu_fault("an mbarrier must be 8-byte aligned");
  if (!count || count > EMU_MAX_THREADS) emu_fault("an mbarrier for %u arrivals", count);
  *barrier = count;
}
static inline unsigned emu_mbarrier_count(const unsigned long long *barrier) {
  const unsigned count = (unsigned)*barrier;
  if (!count || count > EMU_MAX_THREADS) emu_fault("an mbarrier that was not initialised");
  return count;
}
static void emu_mbarrier_arrive(unsigned long long *barrier) {
  const unsigned count = emu_mbarrier_count(barrier);
  *barrier += 1ull << 32;
  if ((*barrier >> 32 & 0x7fffffff) == count) emu_watch_order();
  if ((*barrier >> 32 & 0x7fffffff) == count) *barrier = ((*barrier >> 63 ^ 1) << 63) | count;
}
/* Waiting threads stay ready and look again when it is their turn; when all look in vain for long, nobody will arrive. */
static void emu_mbarrier_wait(unsigned long long *barrier, unsigned parity) {
  emu_mbarrier_count(barrier);
  EmuThread *self = emu.current;
  for (int turns = 0; (*barrier >> 63) == (parity & 1); ++turns) {
    if (turns > 100000) emu_fault("an mbarrier is never completed");
    if (!emu_ready_warps()) emu_fault("an mbarrier is waited for by the only thread that can run");
    self->waits_for = "mbarrier";
    self->line = 0;
    const int schedule = emu.schedule;
    emu.schedule = EMU_RANDOM; /* any other schedule could keep to the waiting ones */
    EmuThread *next = emu_pick();
    emu.schedule = schedule;
    self->warp->ready |= 1u << self->lane;
    emu_switch(&self->stack, emu_stack_of(next));
  }
}
