/* A launch that may start before the one before it has ended (programmatic dependent launch). Until all threads of a block have
   come to griddepcontrol.wait, the block can touch only what no launch of a step writes: everything else is hidden, so that
   an access before the wait ends the launch, a load as well as a store. A thread that exits without the wait does too: with a
   block that did not wait, a launch could be over before the one in front of it is. */
#pragma once

static void emu_protect_regions(int how) {
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE) - 1;
  for (int i = 0; i < emu.launch->num_regions; ++i) {
    const EmuRegion *r = &emu.launch->regions[i];
    const uintptr_t start = (uintptr_t)r->data & ~page, stop = ((uintptr_t)r->data + r->bytes + page) & ~page;
    if (!r->constant && r->bytes && mprotect((void *)start, stop - start, how)) emu_fault("mprotect failed");
  }
}

static void emu_hide(void) {
  memset(&emu.previous, 0, sizeof emu.previous);
  emu.hidden = true;
  emu_protect_regions(PROT_NONE);
}

static void emu_reveal(void) {
  if (!emu.hidden) return;
  emu.hidden = false;
  emu_protect_regions(PROT_READ | PROT_WRITE);
}

static EMU_NOINLINE void emu_grid_dependency_wait(int line) {
  if (!emu.hidden) return;
  EmuBarrier *previous = &emu.previous;
  EmuThread *self = emu.current;
  if (++previous->arrived < emu.num_threads) {
    previous->waiting[self->warp->index] |= 1u << self->lane;
    emu_wait("the wait for the launch before", line);
    return;
  }
  emu_reveal();
  for (int w = 0; w < emu.num_warps; ++w) emu.warps[w].ready |= previous->waiting[w];
}
