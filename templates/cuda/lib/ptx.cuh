/* With ampere.cuh the only place with inline PTX. Every function has a twin for emulation on a CPU. */

/* Four transposed 8 x 8 matrices of 16-bit values; lane 8i + j gives the address of row j of matrix i. */
INLINE void load_matrices_transposed(u32 *r, const void *row) {
#ifdef FERRUM_EMULATE
  emu_ldmatrix(r, row, 4, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 { %0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((u32)__cvta_generic_to_shared(row))
               : "memory");
#endif
}

/* Until the launch before has ended and what it wrote is seen; from then on the next one may start. Every thread comes here, on
   every path, before it touches what launches write: a block that did not wait could let its launch end before the one in
   front. Weights and, past the L1 cache, the step's inputs can be read earlier: they are there before the first launch. */
INLINE void wait_for_previous(void) {
#ifdef FERRUM_EMULATE
  emu_grid_dependency_wait();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* (a & mask) | bits in one instruction: with two constants, compilers make two of it, as only one can stand in the code. */
INLINE u32 masked_or(u32 a, u32 mask, u32 bits) {
#ifdef FERRUM_EMULATE
  return (a & mask) | bits;
#else
  u32 r;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "r"(mask), "r"(bits));
  return r;
#endif
}

/* (~a & mask) | bits */
INLINE u32 masked_not_or(u32 a, u32 mask, u32 bits) {
#ifdef FERRUM_EMULATE
  return (~a & mask) | bits;
#else
  u32 r;
  asm("lop3.b32 %0, %1, %2, %3, 0xae;" : "=r"(r) : "r"(a), "r"(mask), "r"(bits));
  return r;
#endif
}

/* Bytes 2 PAIR and 2 PAIR + 1 of a word as 16-bit halves, with their signs repeated in front. */
template <int PAIR> INLINE u32 widen_bytes(u32 word) {
#ifdef FERRUM_EMULATE
  const int low = (signed char)(word >> 16 * PAIR), high = (signed char)(word >> (16 * PAIR + 8));
  return ((u32)low & 0xffffu) | (u32)high << 16;
#else
  u32 r;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(r) : "r"(word), "n"(PAIR ? 0xb3a2 : 0x9180));
  return r;
#endif
}

INLINE float f16_to_f32(u16 h) {
#ifdef FERRUM_EMULATE
  const float magnitude = __uint_as_float((u32)(h & 0x7fff) << 13) * 0x1p112f;
  return __uint_as_float(__float_as_uint(magnitude) | (u32)(h & 0x8000) << 16);
#else
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
#endif
}

/* 2^x, about 2 units in the last place; 0 for -infinity. */
INLINE float power_of_two(float x) {
#ifdef FERRUM_EMULATE
  return emu_ex2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
