/* What ampere.cuh has, for GPUs without those instructions: the same results from shuffles, float32 and plain copies. */

/* c += a * b over m16 n8 k16; a row-major, b column-major, bfloat16 in pairs. Lane 4 r + t has rows r and r + 8 of a and column r
   of b, K pairs t and t + 4; of c it has the same rows, columns 2 t and 2 t + 1. The loop stays one: kernels have hundreds. */
INLINE void mma_bf16(float *c, const u32 *a, const u32 *b) {
  const int lane = threadIdx.x % 32, row = lane & ~3, column = 8 * (lane & 3);
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll 1
    for (int t = 0; t < 4; ++t) {
      u32 x[2], y[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        x[i] = __shfl_sync(ALL_LANES, a[2 * half + i], row + t);
        y[i] = __shfl_sync(ALL_LANES, b[half], column + 4 * i + t);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        c[i] += __uint_as_float(x[i >> 1] << 16) * __uint_as_float(y[i & 1] << 16);
        c[i] += __uint_as_float(x[i >> 1] & 0xffff0000u) * __uint_as_float(y[i & 1] & 0xffff0000u);
      }
    }
}

/* 16 bytes from global to shared memory; zeros where `valid` is 0. It is there at once, so there is nothing to wait for. */
INLINE void copy_async(void *shared, const void *global, int valid) {
  *(uint4 *)shared = valid ? *(const uint4 *)global : make_uint4(0, 0, 0, 0);
}
INLINE void copies_commit(void) {}
template <int PENDING> INLINE void copies_wait(void) {}

/* Two float32 to bfloat16, rounded to nearest even; `low` in the low half. */
INLINE u32 pack_bf16(float low, float high) { return (u32)f32_to_bf16(low) | (u32)f32_to_bf16(high) << 16; }

/* a * b + c on pairs of bfloat16. */
INLINE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
  const float low = bf16_to_f32((u16)a) * bf16_to_f32((u16)b) + bf16_to_f32((u16)c);
  const float high = bf16_to_f32((u16)(a >> 16)) * bf16_to_f32((u16)(b >> 16)) + bf16_to_f32((u16)(c >> 16));
  return pack_bf16(low, high);
}
