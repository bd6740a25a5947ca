/* c [m][n] f32 = a [m][k] half times b [n][k] half transposed. Tiles of 32 x 32 x 16, four SIMD groups with 16 x 16 each. */
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

struct Shape {
  uint m, n, k;
};

constant constexpr uint TILE = 32, DEPTH = 16;

static void load_tile(threadgroup half *to, device const half *from, uint first, uint rows, uint k, uint k0, uint thread_index) {
  for (uint i = thread_index; i < TILE * DEPTH / 4; i += 128) {
    const uint row = i / (DEPTH / 4), column = i % (DEPTH / 4) * 4;
    half4 v = half4(0.0h);
    if (first + row < rows) v = *reinterpret_cast<device const half4 *>(from + (first + row) * k + k0 + column);
    *reinterpret_cast<threadgroup half4 *>(to + row * DEPTH + column) = v;
  }
}

kernel void gemm(device const half *a [[buffer(0)]], device const half *b [[buffer(1)]], device float *c [[buffer(2)]],
                 constant Shape &shape [[buffer(3)]], threadgroup half *tiles [[threadgroup(0)]],
                 uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
                 ushort simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup half *tile_a = tiles;
  threadgroup half *tile_b = tiles + TILE * DEPTH;
  threadgroup float out[TILE * TILE];
  const uint m0 = group.y * TILE, n0 = group.x * TILE, row0 = simd / 2 * 16, column0 = simd % 2 * 16;
  simdgroup_float8x8 sum[2][2];
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) sum[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (uint k0 = 0; k0 < shape.k; k0 += DEPTH) {
    load_tile(tile_a, a, m0, shape.m, shape.k, k0, index);
    load_tile(tile_b, b, n0, shape.n, shape.k, k0, index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = 0; k < DEPTH; k += 8) {
      simdgroup_half8x8 fa[2], fb[2];
      for (int i = 0; i < 2; ++i) simdgroup_load(fa[i], tile_a + (row0 + i * 8) * DEPTH + k, DEPTH);
      for (int j = 0; j < 2; ++j) simdgroup_load(fb[j], tile_b + (column0 + j * 8) * DEPTH + k, DEPTH, ulong2(0, 0), true);
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) simdgroup_multiply_accumulate(sum[i][j], fa[i], fb[j], sum[i][j]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) simdgroup_store(sum[i][j], out + (row0 + i * 8) * TILE + column0 + j * 8, TILE);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = index; i < TILE * TILE; i += 128) {
    const uint row = m0 + i / TILE, column = n0 + i % TILE;
    if (row < shape.m && column < shape.n) c[row * shape.n + column] = out[i];
  }
}
