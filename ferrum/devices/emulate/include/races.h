/* Races in shared memory, found whatever the schedule. With EMU_RACES the compiler calls the functions below for every load
   and store (its instrumentation for ThreadSanitizer, whose library is not linked). Two accesses of a byte by different threads,
   one of them a store, need a barrier between them: of the block, or of the warp when both are of one warp. Shuffles, votes and
   matrix instructions make lanes meet, but do not order memory. Atomics are left out. */
#pragma once

#if !defined(EMU_RACES)
#define EMU_UNWATCHED
static inline void emu_watch(const void *, unsigned, bool) {}
static inline void emu_watch_order(void) {}
static inline void emu_watch_warp(void) {}
static inline void emu_watch_last(int) {}
#else

#define EMU_UNWATCHED __attribute__((no_sanitize("thread")))

struct EmuAccess {
  uint32_t store_epoch, store_sync, store_at, load_epoch, load_sync, load_at;
  int16_t store_thread, load_thread;
  bool other_lane, other_warp; /* loads of this epoch came from more than load_thread: of its warp, of other warps */
};
enum { EMU_WATCHED_STATIC = 128 << 10 };
static struct {
  uint32_t epoch, syncs[EMU_MAX_WARPS];
  int quiet;
  EmuAccess dynamic[EMU_MAX_DYNAMIC], fixed[EMU_WATCHED_STATIC];
} emu_watched;

static inline EMU_UNWATCHED void emu_watch_order(void) { ++emu_watched.epoch; }
static inline EMU_UNWATCHED void emu_watch_warp(void) { ++emu_watched.syncs[emu.current->warp->index]; }
static inline EMU_UNWATCHED void emu_watch_last(int by) { emu_watched.quiet += by; }

static EMU_UNWATCHED EmuAccess *emu_access(const uint8_t *p, unsigned bytes) {
  if (p >= emu.dynamic && p + bytes <= emu.dynamic + emu.dynamic_bytes) return &emu_watched.dynamic[p - emu.dynamic];
  uint8_t *start = emu.kernel->shared_start, *stop = emu.kernel->shared_stop;
  if (p >= start && p + bytes <= stop && p - start < EMU_WATCHED_STATIC / 2) return &emu_watched.fixed[p - start];
  start = emu.common->shared_start, stop = emu.common->shared_stop;
  if (p >= start && p + bytes <= stop && p - start < EMU_WATCHED_STATIC / 2)
    return &emu_watched.fixed[EMU_WATCHED_STATIC / 2 + (p - start)];
  return 0;
}

static __attribute__((noinline, cold, noreturn)) EMU_UNWATCHED void emu_race(const char *now, uint32_t at, const char *then,
                                                                             int thread, uint32_t before) {
  emu_watched.quiet = 0;
  emu_fault("a race in shared memory: a %s at +0x%x and a %s at +0x%x by thread %d, with no barrier between them", now, at, then,
            before, thread);
}

#if defined(__linux__)
extern "C" __attribute__((visibility("hidden"))) char __ehdr_start;
#define EMU_CODE(address) (uint32_t)((const char *)(address) - &__ehdr_start)
#else
#define EMU_CODE(address) 0u
#endif

static EMU_UNWATCHED void emu_watch_at(const void *address, unsigned bytes, bool store, uint32_t at) {
  if (emu_watched.quiet || !emu.current || !emu.kernel) return;
  EmuAccess *access = emu_access((const uint8_t *)address, bytes);
  if (!access) return;
  const EmuThread *self = emu.current;
  const int thread = self->linear, warp = self->warp->index;
  const uint32_t epoch = emu_watched.epoch, sync = emu_watched.syncs[warp];
  for (EmuAccess *a = access; a < access + bytes; ++a) {
    if (a->store_epoch == epoch && a->store_thread != thread &&
        (a->store_thread / EMU_LANES != warp || a->store_sync == sync))
      emu_race(store ? "store" : "load", at, "store", a->store_thread, a->store_at);
    if (store) {
      if (a->load_epoch == epoch) {
        const bool same_warp = a->load_thread / EMU_LANES == warp && !a->other_warp;
        if (!same_warp || ((a->load_thread != thread || a->other_lane) && a->load_sync == sync))
          if (a->load_thread != thread || a->other_lane || a->other_warp)
            emu_race("store", at, "load", a->load_thread, a->load_at);
      }
      a->store_epoch = epoch, a->store_sync = sync, a->store_thread = (int16_t)thread, a->store_at = at;
    } else {
      if (a->load_epoch != epoch) {
        a->other_lane = a->other_warp = false;
        a->load_thread = (int16_t)thread;
      } else if (a->load_thread != thread) {
        if (a->load_thread / EMU_LANES != warp) a->other_warp = true;
        else if (a->load_sync == sync) a->other_lane = true;
        else a->other_lane = false;
        a->load_thread = (int16_t)thread;
      } else if (a->load_sync != sync) {
        a->other_lane = false;
      }
      a->load_epoch = epoch, a->load_sync = sync, a->load_at = at;
    }
  }
}
static inline EMU_UNWATCHED void emu_watch(const void *p, unsigned bytes, bool store) {
  emu_watch_at(p, bytes, store, EMU_CODE(__builtin_return_address(0)));
}

extern "C" {
#define EMU_WATCH(name, bytes, store) \
  EMU_UNWATCHED __attribute__((visibility("hidden"))) void name(const void *p) { emu_watch_at(p, bytes, store, EMU_CODE(__builtin_return_address(0)) - 1); }
EMU_WATCH(__tsan_read1, 1, false)
EMU_WATCH(__tsan_read2, 2, false)
EMU_WATCH(__tsan_read4, 4, false)
EMU_WATCH(__tsan_read8, 8, false)
EMU_WATCH(__tsan_read16, 16, false)
EMU_WATCH(__tsan_write1, 1, true)
EMU_WATCH(__tsan_write2, 2, true)
EMU_WATCH(__tsan_write4, 4, true)
EMU_WATCH(__tsan_write8, 8, true)
EMU_WATCH(__tsan_write16, 16, true)
EMU_WATCH(__tsan_unaligned_read2, 2, false)
EMU_WATCH(__tsan_unaligned_read4, 4, false)
EMU_WATCH(__tsan_unaligned_read8, 8, false)
EMU_WATCH(__tsan_unaligned_read16, 16, false)
EMU_WATCH(__tsan_unaligned_write2, 2, true)
EMU_WATCH(__tsan_unaligned_write4, 4, true)
EMU_WATCH(__tsan_unaligned_write8, 8, true)
EMU_WATCH(__tsan_unaligned_write16, 16, true)
EMU_WATCH(__tsan_volatile_read1, 1, false)
EMU_WATCH(__tsan_volatile_read2, 2, false)
EMU_WATCH(__tsan_volatile_read4, 4, false)
EMU_WATCH(__tsan_volatile_read8, 8, false)
EMU_WATCH(__tsan_volatile_write1, 1, true)
EMU_WATCH(__tsan_volatile_write2, 2, true)
EMU_WATCH(__tsan_volatile_write4, 4, true)
EMU_WATCH(__tsan_volatile_write8, 8, true)
#undef EMU_WATCH
#define EMU_IGNORED EMU_UNWATCHED __attribute__((visibility("hidden")))
EMU_IGNORED void __tsan_init(void) {}
EMU_IGNORED void __tsan_func_entry(void *) {}
EMU_IGNORED void __tsan_func_exit(void) {}
EMU_IGNORED void __tsan_vptr_update(void **, void *) {}
EMU_IGNORED void __tsan_read_range(void *p, long bytes) { emu_watch_at(p, (unsigned)bytes, false, EMU_CODE(__builtin_return_address(0)) - 1); }
EMU_IGNORED void __tsan_write_range(void *p, long bytes) { emu_watch_at(p, (unsigned)bytes, true, EMU_CODE(__builtin_return_address(0)) - 1); }
EMU_IGNORED void *__tsan_memcpy(void *to, const void *from, size_t n) { return memcpy(to, from, n); }
EMU_IGNORED void *__tsan_memmove(void *to, const void *from, size_t n) { return memmove(to, from, n); }
EMU_IGNORED void *__tsan_memset(void *to, int value, size_t n) { return memset(to, value, n); }
#undef EMU_IGNORED
}
#endif
