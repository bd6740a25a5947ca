/* What SIMD groups and threadgroups do together, one kernel for each thing. */
#include <metal_stdlib>
using namespace metal;

struct Places {
  packed_float4 corner;
  uint width;
};
static_assert(sizeof(Places) == 20, "packed vectors are not padded");

kernel void simd(device int *out [[buffer(0)]], device const int *in [[buffer(1)]], uint index [[thread_index_in_threadgroup]],
                 ushort lane [[thread_index_in_simdgroup]]) {
  const int v = in[index];
  device int *own = out + 16 * index;
  own[0] = simd_sum(v);
  own[1] = simd_max(v);
  own[2] = simd_min(v);
  own[3] = simd_shuffle_xor(v, 5);
  own[4] = simd_shuffle_down(v, 3);
  own[5] = simd_shuffle_up(v, 3);
  own[6] = simd_broadcast(v, 7);
  own[7] = simd_broadcast_first(v);
  own[8] = simd_prefix_inclusive_sum(v);
  own[9] = simd_prefix_exclusive_sum(v);
  own[10] = (int)(simd_vote::vote_t)simd_ballot(v & 1);
  own[11] = simd_any(v > 98) + 2 * simd_all(v > 1);
  own[12] = quad_sum(v);
  own[13] = quad_broadcast(v, 2);
  own[14] = simd_shuffle(v, (ushort)(31 - lane));
  own[15] = simd_xor(v);
}

kernel void values(device float *out [[buffer(0)]], constant Places &places [[buffer(1)]], constant float *table [[buffer(2)]],
                   uint3 at [[thread_position_in_grid]], ushort2 group [[threadgroup_position_in_grid]],
                   uint threads [[threads_per_threadgroup]]) {
  const half4 h = half4(1.5h, half2(2.0h, 3.0h), 4.0h);
  const bfloat2 b = bfloat2(1.0bf, bfloat(2.5f));
  const float4 v = float4(h) * places.corner + float4(float(b.x), float(b.y), 0.0f, 1.0f);
  const uint i = at.y * 4 + at.x;
  out[i] = dot(v, float4(1.0f)) + table[1] + float(places.width) + as_type<float>(as_type<uint>(float(group.y))) + float(threads);
  out[i] += select(0.0f, clamp(float(i), 2.0f, 3.0f), i > 1) + max(0.0f, -1.0f) + float(extract_bits(0xabcdu, 4, 8));
}

kernel void untouched(device int *out [[buffer(0)]], threadgroup int *dynamic [[threadgroup(0)]],
                      uint group [[threadgroup_position_in_grid]], uint index [[thread_position_in_threadgroup]]) {
  threadgroup int fixed[4];
  threadgroup atomic_uint arrived;
  out[2 * group] = fixed[3];
  out[2 * group + 1] = dynamic[1];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  fixed[index] = dynamic[index] = 5;
  atomic_store_explicit(&arrived, 0u, memory_order_relaxed);
}

kernel void leavers(device int *out [[buffer(0)]], uint index [[thread_position_in_threadgroup]]) {
  if (index >= 32) return;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[index] = 1;
}

kernel void parted(device int *out [[buffer(0)]], uint index [[thread_position_in_threadgroup]]) {
  if (index < 32) out[index] = simd_sum(1);
  if (index < 16) out[index] += simd_sum(1);
}

kernel void diagonal(device float *out [[buffer(0)]], device const float *in [[buffer(1)]]) {
  simdgroup_float8x8 m, scale(2.0f), product;
  simdgroup_load(m, in, 8);
  simdgroup_multiply(product, scale, m);
  simdgroup_store(product, out, 8, ulong2(0, 0), true);
}
