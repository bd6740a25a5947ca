/* Asynchronous copies: a ring of pending ones per thread, in the order of their calls. */
#pragma once

static inline EMU_UNWATCHED void emu_land_copy(const EmuCopy *copy) {
  memcpy(copy->to, copy->from, copy->source_bytes);
  memset(copy->to + copy->source_bytes, 0, copy->bytes - copy->source_bytes);
}

static void emu_cp_async(void *shared, const void *global, unsigned bytes, unsigned source_bytes) {
  if (bytes != 4 && bytes != 8 && bytes != 16) emu_fault("an asynchronous copy of %u bytes", bytes);
  if (source_bytes > bytes) emu_fault("an asynchronous copy reads %u bytes for %u", source_bytes, bytes);
  if ((uintptr_t)shared % bytes || (source_bytes && (uintptr_t)global % bytes))
    emu_fault("an asynchronous copy of %u bytes from or to an address that is not a multiple", bytes);
  emu_watch(shared, bytes, true);
  if (emu.hidden && source_bytes) (void)*(const volatile uint8_t *)global; /* landing late is no excuse */
  EmuThread *t = emu.current;
  const EmuCopy copy = {(uint8_t *)shared, (const uint8_t *)global, t->group, bytes, source_bytes};
  if (!emu.late_copies) {
    emu_land_copy(&copy);
    return;
  }
  EmuCopy *ring = emu.copies[t->linear];
  if (t->copies_end - t->copies_begin == EMU_MAX_COPIES) emu_land_copy(&ring[t->copies_begin++ % EMU_MAX_COPIES]);
  ring[t->copies_end++ % EMU_MAX_COPIES] = copy;
  memset(shared, emu.poison, bytes);
}

static void emu_cp_async_commit(void) { ++emu.current->group; }

static void emu_land_groups_below(uint64_t group) {
  EmuThread *t = emu.current;
  EmuCopy *ring = emu.copies[t->linear];
  for (; t->copies_begin != t->copies_end; ++t->copies_begin) {
    const EmuCopy *copy = &ring[t->copies_begin % EMU_MAX_COPIES];
    if (copy->group >= group) return;
    emu_watch(copy->to, copy->bytes, true);
    emu_land_copy(copy);
  }
}

static void emu_cp_async_wait(unsigned pending) {
  const uint64_t closed = emu.current->group;
  if (closed > pending) emu_land_groups_below(closed - pending);
}

static void emu_cp_async_wait_all(void) { emu_land_groups_below(~0ull); }
