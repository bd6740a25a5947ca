/* Words, numbers and sums that all kernels share. No header is needed: what the compiler has built in is enough. */
#define INLINE static __device__ __forceinline__
#define ALL_LANES 0xffffffffu

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define FLOAT_OF(bits) __uint_as_float(bits)
#define BITS_OF(value) __float_as_uint(value)

{% include "gpu/lib/common.h" %}

INLINE float warp_sum(float x) {
#pragma unroll
  for (int i = 16; i; i >>= 1) x += __shfl_xor_sync(ALL_LANES, x, i);
  return x;
}

INLINE float warp_max(float x) {
#pragma unroll
  for (int i = 16; i; i >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, i));
  return x;
}

/* The value of the lane whose number differs in the bits of `lanes`; a sum over the warp. */
INLINE u32 swap_word(u32 x, int lanes) { return __shfl_xor_sync(ALL_LANES, x, lanes); }
INLINE u64 swap_long(u64 x, int lanes) { return __shfl_xor_sync(ALL_LANES, x, lanes); }
INLINE u64 warp_total(u64 x) {
#pragma unroll
  for (int i = 16; i; i >>= 1) x += swap_long(x, i);
  return x;
}
