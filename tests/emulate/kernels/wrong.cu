/* Kernels with one fault each. */

extern __shared__ float tail[];

extern "C" __global__ void parted(int *out) {
  if (threadIdx.x < 32) __syncthreads();
  else __syncthreads_or(1);
  out[threadIdx.x] = 1;
}
extern "C" __global__ void half_waits(int *out) {
  if (threadIdx.x & 1) __syncthreads();
  else out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
}
extern "C" __global__ void lane_missing(int *out) { out[threadIdx.x] = __shfl_sync(0x0000fffeu, 1, 1); }
extern "C" __global__ void two_kinds(int *out) {
  out[threadIdx.x] = threadIdx.x & 1 ? __shfl_sync(0xffffffffu, 1, 1) : __any_sync(0xffffffffu, 1);
}
extern "C" __global__ void shuffle_from_nobody(int *out) {
  out[threadIdx.x] = threadIdx.x < 16 ? __shfl_sync(0x0000ffffu, 1, 20) : 0;
}
extern "C" __global__ void copy(float *out, const float *in, int n, int shift) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x + shift;
  if (i < n) out[i] = in[i];
}
extern "C" __global__ void wide_load(float4 *out, const float *in, int shift) {
  out[threadIdx.x] = __ldg((const float4 *)(in + shift) + threadIdx.x);
}
extern "C" __global__ void dynamic_tail(float *out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) tail[i] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = tail[threadIdx.x];
}
extern "C" __global__ void forever(volatile int *flag) {
  while (!*flag) {}
}
extern "C" __global__ void division(int *out, int by) { out[threadIdx.x] = 7 / by; }
extern "C" __global__ void __launch_bounds__(64) bounded(int *out) { out[threadIdx.x] = 1; }
extern "C" __global__ void unaligned_copy(float *out, const float *in) {
  __shared__ float to[64];
  emu_cp_async(&to[threadIdx.x], in + threadIdx.x, 8, 8);
  emu_cp_async_wait_all();
  out[threadIdx.x] = to[threadIdx.x];
}
extern "C" __global__ void barrier_never_full(int *out) {
  emu_barrier(3, 64);
  out[threadIdx.x] = 1;
}
extern "C" __global__ void deep(int *out, int n) {
  volatile char space[4096];
  space[n] = (char)n;
  if (n) deep(out, n - 1);
  out[0] = space[n];
}
