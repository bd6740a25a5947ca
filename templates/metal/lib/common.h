/* Words, numbers and sums that all kernels share. */
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

#define INLINE static inline

typedef uchar u8;
typedef ushort u16;
typedef uint u32;
typedef ulong u64;
#define FLOAT_OF(bits) as_type<float>(bits)
#define BITS_OF(value) as_type<u32>(value)

{% include "gpu/lib/common.h" %}

/* The order of the additions is ours and not the compiler's: every device gives the same sum. */
INLINE float group_sum(float x) {
  for (u16 i = 16; i; i >>= 1) x += simd_shuffle_xor(x, i);
  return x;
}

INLINE float group_max(float x) {
  for (u16 i = 16; i; i >>= 1) x = fmax(x, simd_shuffle_xor(x, i));
  return x;
}

/* The value of the lane whose number differs in the bits of `lanes`; a sum over the SIMD group. Shuffles know no numbers of 64
   bits. */
INLINE u32 swap_word(u32 x, int lanes) { return simd_shuffle_xor(x, (u16)lanes); }
INLINE u64 swap_long(u64 x, int lanes) { return (u64)swap_word((u32)(x >> 32), lanes) << 32 | swap_word((u32)x, lanes); }
INLINE u64 warp_total(u64 x) {
  for (int i = 16; i; i >>= 1) x += swap_long(x, i);
  return x;
}
