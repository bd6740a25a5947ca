/* What came with sm_80: matrix products and arithmetic in bfloat16, copies to shared memory that nobody waits for. */

/* c += a * b over m16 n8 k16; a row-major, b column-major, bfloat16 in pairs. */
INLINE void mma_bf16(float *c, const u32 *a, const u32 *b) {
#ifdef FERRUM_EMULATE
  emu_mma_m16n8k16_bf16(c, a, b, c);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %0, %1, %2, %3}, { %4, %5, %6, %7}, { %8, %9}, { %0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/* 16 bytes from global to shared memory, past the L1 cache; zeros where `valid` is 0. */
INLINE void copy_async(void *shared, const void *global, int valid) {
#ifdef FERRUM_EMULATE
  emu_cp_async(shared, global, 16, valid ? 16 : 0);
#else
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :
               : "r"((u32)__cvta_generic_to_shared(shared)), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
#endif
}

INLINE void copies_commit(void) {
#ifdef FERRUM_EMULATE
  emu_cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* Until at most PENDING of this thread's groups are under way. */
template <int PENDING> INLINE void copies_wait(void) {
#ifdef FERRUM_EMULATE
  emu_cp_async_wait(PENDING);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

/* Two float32 to bfloat16, rounded to nearest even; `low` in the low half. */
INLINE u32 pack_bf16(float low, float high) {
#ifdef FERRUM_EMULATE
  return (u32)f32_to_bf16(low) | (u32)f32_to_bf16(high) << 16;
#else
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#endif
}

/* a * b + c on pairs of bfloat16, each rounded once. */
INLINE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
#ifdef FERRUM_EMULATE
  const float low = bf16_to_f32((u16)a) * bf16_to_f32((u16)b) + bf16_to_f32((u16)c);
  const float high = bf16_to_f32((u16)(a >> 16)) * bf16_to_f32((u16)(b >> 16)) + bf16_to_f32((u16)(c >> 16));
  return pack_bf16(low, high);
#else
  u32 r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
#endif
}
