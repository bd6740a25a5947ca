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
