/* Row-wise kernels: one threadgroup a row. */
#include <metal_stdlib>
using namespace metal;

constant float EPS = 1e-6f;

kernel void rms_norm(device const half *x [[buffer(0)]], device const half *w [[buffer(1)]], device half *y [[buffer(2)]],
                     constant uint &n [[buffer(3)]], uint row [[threadgroup_position_in_grid]],
                     uint index [[thread_position_in_threadgroup]], uint size [[threads_per_threadgroup]],
                     ushort lane [[thread_index_in_simdgroup]], ushort simd [[simdgroup_index_in_threadgroup]],
                     ushort simds [[simdgroups_per_threadgroup]]) {
  threadgroup float part[32];
  device const half4 *in = reinterpret_cast<device const half4 *>(x + row * n);
  device const half4 *scale = reinterpret_cast<device const half4 *>(w);
  device half4 *out = reinterpret_cast<device half4 *>(y + row * n);
  float sum = 0.0f;
  for (uint i = index; i < n / 4; i += size) {
    const float4 v = float4(in[i]);
    sum += dot(v, v);
  }
  sum = simd_sum(sum);
  if (lane == 0) part[simd] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  sum = simd_sum(lane < simds ? part[lane] : 0.0f);
  const float r = rsqrt(sum / float(n) + EPS);
  for (uint i = index; i < n / 4; i += size) out[i] = half4(float4(in[i]) * r * float4(scale[i]));
}

[[max_total_threads_per_threadgroup(32)]] kernel void softmax(device const bfloat *x [[buffer(0)]], device bfloat *y [[buffer(1)]],
                                                             constant uint &n [[buffer(2)]], device atomic_uint *rows [[buffer(3)]],
                                                             uint2 group [[threadgroup_position_in_grid]],
                                                             ushort lane [[thread_index_in_simdgroup]]) {
  device const bfloat *in = x + group.x * n;
  float most = -INFINITY, sum = 0.0f;
  for (uint i = lane; i < n; i += 32) most = max(most, float(in[i]));
  most = simd_max(most);
  for (uint i = lane; i < n; i += 32) sum += fast::exp(float(in[i]) - most);
  sum = simd_sum(sum);
  if (lane == 0) atomic_fetch_add_explicit(rows, 1u, memory_order_relaxed);
  for (uint i = lane; i < n; i += 32) y[group.x * n + i] = bfloat(precise::exp(float(in[i]) - most) / sum);
}
