/* What threads of a block do together, one kernel for each thing. */

extern __shared__ int dynamic[];

__device__ __forceinline__ int flat() {
  return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
}

extern "C" __global__ void places(int *out) {
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  int *own = out + 4 * (block * threads + flat());
  own[0] = block, own[1] = threadIdx.x, own[2] = threadIdx.y, own[3] = threadIdx.z;
}

extern "C" __global__ void shuffles(int *out, const int *in, int width, int by) {
  const int v = in[threadIdx.x], n = blockDim.x;
  out[threadIdx.x] = __shfl_sync(0xffffffffu, v, by, width);
  out[n + threadIdx.x] = __shfl_xor_sync(0xffffffffu, v, by, width);
  out[2 * n + threadIdx.x] = __shfl_up_sync(0xffffffffu, v, by, width);
  out[3 * n + threadIdx.x] = __shfl_down_sync(0xffffffffu, v, by, width);
}

extern "C" __global__ void votes(unsigned *out, const int *in) {
  const int v = in[threadIdx.x], n = blockDim.x;
  const unsigned half = threadIdx.x & 16 ? 0xffff0000u : 0x0000ffffu;
  int all;
  out[threadIdx.x] = __ballot_sync(0xffffffffu, v & 1);
  out[n + threadIdx.x] = __any_sync(half, v > 90) | __all_sync(half, v > 3) << 1;
  out[2 * n + threadIdx.x] = __match_any_sync(0xffffffffu, v % 5);
  out[3 * n + threadIdx.x] = __match_all_sync(half, v / 100, &all);
  out[4 * n + threadIdx.x] = __reduce_add_sync(half, (unsigned)v);
  out[5 * n + threadIdx.x] = (unsigned)__reduce_min_sync(0xffffffffu, v - 50);
}

extern "C" __global__ void block_votes(int *out, const int *in) {
  const int v = in[threadIdx.x], n = blockDim.x;
  out[threadIdx.x] = __syncthreads_or(v > 98);
  out[n + threadIdx.x] = __syncthreads_and(v >= 0);
  out[2 * n + threadIdx.x] = __syncthreads_count(v & 1);
}

extern "C" __global__ void histogram(int *bins, unsigned *most, const int *in, int n) {
  __shared__ int local[8];
  if (threadIdx.x < 8) local[threadIdx.x] = 0;
  __syncthreads();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    atomicAdd(&local[in[i] & 7], 1);
    atomicMax(most, (unsigned)in[i]);
  }
  __syncthreads();
  if (threadIdx.x < 8) atomicAdd(&bins[threadIdx.x], local[threadIdx.x]);
}

/* What shared memory holds before anybody writes to it. */
extern "C" __global__ void untouched(int *out) {
  __shared__ int fixed[4];
  out[2 * blockIdx.x] = fixed[3];
  out[2 * blockIdx.x + 1] = dynamic[1];
  __syncthreads();
  fixed[threadIdx.x] = dynamic[threadIdx.x] = 5;
}

/* The upper half of the threads leaves early; the rest still meets. */
extern "C" __global__ void leavers(int *out) {
  __shared__ int sum;
  if (threadIdx.x >= blockDim.x / 2) return;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, 1);
  __syncthreads();
  out[threadIdx.x] = sum;
}

/* Warp 0 makes, warp 1 takes; two named barriers. */
extern "C" __global__ void handover(int *out, int rounds) {
  __shared__ int item[32];
  const int lane = threadIdx.x & 31;
  for (int i = 0; i < rounds; ++i) {
    if (threadIdx.x < 32) {
      if (i) emu_barrier(2, 64);
      item[lane] = i * 32 + lane;
      emu_barrier_arrive(1, 64);
    } else {
      emu_barrier(1, 64);
      out[i * 32 + lane] = item[31 - lane];
      if (i + 1 < rounds) emu_barrier_arrive(2, 64);
    }
  }
}

extern "C" __global__ void phases(int *out, int rounds) {
  __shared__ unsigned long long full;
  __shared__ int item[32];
  if (threadIdx.x == 0) emu_mbarrier_init(&full, 32);
  __syncthreads();
  for (int i = 0; i < rounds; ++i) {
    if (threadIdx.x < 32) {
      item[threadIdx.x] = i + (int)threadIdx.x;
      emu_mbarrier_arrive(&full);
    } else {
      emu_mbarrier_wait(&full, i & 1);
      out[i * 32 + (threadIdx.x - 32)] = item[63 - threadIdx.x];
    }
    __syncthreads();
  }
}

/* The last block to arrive adds up what all have written. */
extern "C" __global__ void last_block(float *total, float *parts, unsigned *arrived) {
  __shared__ bool last;
  parts[blockIdx.x * blockDim.x + threadIdx.x] = (float)(blockIdx.x + 1);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(arrived, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  float sum = 0.0f;
  for (int b = 0; b < (int)gridDim.x; ++b) sum += parts[b * blockDim.x + threadIdx.x];
  total[threadIdx.x] = sum;
  if (threadIdx.x == 0) *arrived = 0;
}

/* The order in which threads come by. */
extern "C" __global__ void order(int *out, int *next) {
  out[atomicAdd(next, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
  __syncwarp();
  out[atomicAdd(next, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
}

struct Pair {
  float low, high;
};
template <class T> __global__ void not_a_kernel_of_its_own(T *x) { x[0] = T(0); }
extern "C" __global__ void __launch_bounds__(64, 2) by_value(float *out, Pair pair, const float *in, double d, short s) {
  __shared__ __align__(16) float rows[2][64]; // "__shared__ int nothing[4];" in a string or comment is nothing
  rows[threadIdx.x & 1][threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = rows[threadIdx.x & 1][threadIdx.x] * pair.low + pair.high + (float)d + s;
}
