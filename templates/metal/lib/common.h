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
