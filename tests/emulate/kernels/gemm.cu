/* c [m][n] f32 = a [m][k] bf16 times b [n][k] bf16 transposed. Tiles of 64 x 64 x 32, three stages of asynchronous copies,
   four warps with 32 x 32 each. k is a multiple of 32. */
#include <cuda_bf16.h>

constexpr int TILE = 64, DEPTH = 32, STRIDE = DEPTH + 8, STAGES = 3;

__device__ __forceinline__ void load_tile(__nv_bfloat16 (*to)[STRIDE], const __nv_bfloat16 *from, int first, int rows, int k,
                                          int k0) {
  for (int i = threadIdx.x; i < TILE * DEPTH / 8; i += 128) {
    const int row = i / (DEPTH / 8), column = i % (DEPTH / 8) * 8;
    const bool inside = first + row < rows;
    emu_cp_async(&to[row][column], inside ? from + (size_t)(first + row) * k + k0 + column : from, 16, inside ? 16 : 0);
  }
}

extern "C" __global__ void __launch_bounds__(128)
    gemm(float *__restrict__ c, const __nv_bfloat16 *__restrict__ a, const __nv_bfloat16 *__restrict__ b, int m, int n, int k) {
  __shared__ __align__(16) __nv_bfloat16 tile_a[STAGES][TILE][STRIDE];
  __shared__ __align__(16) __nv_bfloat16 tile_b[STAGES][TILE][STRIDE];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE, row0 = warp / 2 * 32, column0 = warp % 2 * 32;
  float sum[2][4][4] = {};
  const int steps = k / DEPTH;
  for (int stage = 0; stage < STAGES - 1; ++stage) {
    if (stage < steps) {
      load_tile(tile_a[stage], a, m0, m, k, stage * DEPTH);
      load_tile(tile_b[stage], b, n0, n, k, stage * DEPTH);
    }
    emu_cp_async_commit();
  }
  for (int step = 0; step < steps; ++step) {
    emu_cp_async_wait(STAGES - 2);
    __syncthreads();
    const int next = step + STAGES - 1;
    if (next < steps) {
      load_tile(tile_a[next % STAGES], a, m0, m, k, next * DEPTH);
      load_tile(tile_b[next % STAGES], b, n0, n, k, next * DEPTH);
    }
    emu_cp_async_commit();
    const int stage = step % STAGES;
#pragma unroll
    for (int kk = 0; kk < DEPTH; kk += 16) {
      unsigned fa[2][4], fb[4][2];
      for (int i = 0; i < 2; ++i)
        emu_ldmatrix(fa[i], &tile_a[stage][row0 + i * 16 + lane % 16][kk + lane / 16 * 8], 4, false);
      for (int j = 0; j < 4; ++j)
        emu_ldmatrix(fb[j], &tile_b[stage][column0 + j * 8 + lane % 8][kk + lane / 8 % 2 * 8], 2, false);
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j) emu_mma_m16n8k16_bf16(sum[i][j], fa[i], fb[j], sum[i][j]);
    }
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int e = 0; e < 4; ++e) {
        const int row = m0 + row0 + i * 16 + lane / 4 + e / 2 * 8, column = n0 + column0 + j * 8 + lane % 4 * 2 + e % 2;
        if (row < m && column < n) c[(size_t)row * n + column] = sum[i][j][e];
      }
}
