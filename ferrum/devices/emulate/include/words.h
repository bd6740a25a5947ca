/* Word operations and single accesses of global memory. */
#pragma once

static inline unsigned emu_lop3(unsigned a, unsigned b, unsigned c, unsigned table) {
  unsigned r = 0;
  for (unsigned i = 0; i < 8; ++i)
    if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}

/* Each nibble of the selector picks one of the eight bytes of b:a, or with its high bit the sign of that byte. */
static inline unsigned emu_prmt(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = (uint64_t)b << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> 4 * i;
    uint8_t byte = (uint8_t)(bytes >> 8 * (pick & 7));
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
    r |= (unsigned)byte << 8 * i;
  }
  return r;
}

static inline float emu_ex2(float x) { return exp2f(x); }

static inline unsigned emu_e4m3x2_to_f16x2(unsigned short pair) {
  return (unsigned)emu_to_f16(emu_from_e4m3((uint8_t)pair)) | (unsigned)emu_to_f16(emu_from_e4m3((uint8_t)(pair >> 8))) << 16;
}
static inline unsigned short emu_f32x2_to_e4m3x2(float low, float high) {
  return (unsigned short)(emu_to_e4m3(low) | emu_to_e4m3(high) << 8);
}
static inline unsigned short emu_f16x2_to_e4m3x2(unsigned pair) {
  return emu_f32x2_to_e4m3x2(emu_from_f16((uint16_t)pair), emu_from_f16((uint16_t)(pair >> 16)));
}

template <class T> static inline void emu_check_aligned(const T *p) {
  if ((uintptr_t)p % sizeof(T)) emu_fault("an access of %d bytes at an address that is not a multiple", (int)sizeof(T));
}
template <class T> static inline T emu_load(const T *p) {
  emu_check_aligned(p);
  return *p;
}
template <class T> static inline void emu_store(T *p, T value) {
  emu_check_aligned(p);
  *p = value;
}
template <class T> static inline T emu_load_acquire(const T *p) { return emu_load(p); }
template <class T> static inline void emu_store_release(T *p, T value) {
  emu_fence();
  emu_store(p, value);
  emu_seen(p, sizeof(T));
}
template <class T> static inline T emu_atomic_add_release(T *p, T value) {
  emu_fence();
  const T old = emu_load(p);
  *p = (T)(old + value);
  emu_seen(p, sizeof(T));
  return old;
}
