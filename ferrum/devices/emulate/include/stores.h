/* Late stores: what a block wrote to global memory stays invisible to other blocks until a thread of it passes a fence, or
   until the launch ends. A kernel that hands results to another block (the last one to arrive merges) without a fence then
   reads old values, as it may on a device. A fence publishes all stores of its block so far, which is coarser than the
   device's rule for one thread; atomics are visible at once.

   The host gives three bytes for every byte of global memory: what others see, what is held back, and whether it is. */
#pragma once

static inline uint64_t emu_region_bytes(void) {
  uint64_t bytes = 0;
  for (int i = 0; i < emu.launch->num_regions; ++i) bytes += emu.launch->regions[i].bytes;
  return bytes;
}

/* What this block wrote so far is seen by all. */
static void emu_publish(void) {
  uint8_t *seen = emu.launch->shadow;
  for (int i = 0; i < emu.launch->num_regions; ++i) {
    const EmuRegion *r = &emu.launch->regions[i];
    memcpy(seen, r->data, r->bytes);
    seen += r->bytes;
  }
}

static inline void emu_fence(void) {
  emu.current->fenced = true;
  if (emu.launch->late_stores) emu_publish();
}

/* An atomic access of `bytes` at p has been done: it is seen at once. */
static inline void emu_seen(const void *p, size_t bytes) {
  if (!emu.launch->late_stores) return;
  const uint8_t *at = (const uint8_t *)p;
  uint8_t *seen = emu.launch->shadow;
  for (int i = 0; i < emu.launch->num_regions; ++i) {
    const EmuRegion *r = &emu.launch->regions[i];
    if (at >= r->data && at + bytes <= r->data + r->bytes) memcpy(seen + (at - r->data), at, bytes);
    seen += r->bytes;
  }
}

static void emu_begin_stores(void) { emu_publish(); }

static void emu_end_stores(void) {
  const uint64_t all = emu_region_bytes();
  uint8_t *seen = emu.launch->shadow;
  for (int i = 0; i < emu.launch->num_regions; ++i) {
    const EmuRegion *r = &emu.launch->regions[i];
    if (memcmp(seen, r->data, r->bytes) != 0)
      for (uint64_t j = 0; j < r->bytes; ++j)
        if (r->data[j] != seen[j]) {
          seen[all + j] = r->data[j];
          seen[2 * all + j] = 1;
          r->data[j] = seen[j];
        }
    seen += r->bytes;
  }
}

/* The end of the launch: everything lands. */
static void emu_land_stores(void) {
  const uint64_t all = emu_region_bytes();
  const uint8_t *seen = emu.launch->shadow;
  for (int i = 0; i < emu.launch->num_regions; ++i) {
    const EmuRegion *r = &emu.launch->regions[i];
    for (uint64_t j = 0; j < r->bytes; ++j)
      if (seen[2 * all + j]) r->data[j] = seen[all + j];
    seen += r->bytes;
  }
}
