/* Fragments, words and small floats, one kernel for each. */

/* Elements of every lane's fragments are given and taken as they lie in its registers. */
#define PRODUCT(name, T, A, B)                                                                      \
  {                                                                                                 \
    unsigned fa[A], fb[B];                                                                          \
    T sum[4];                                                                                       \
    for (int i = 0; i < A; ++i) fa[i] = a[threadIdx.x * A + i];                                     \
    for (int i = 0; i < B; ++i) fb[i] = b[threadIdx.x * B + i];                                     \
    for (int i = 0; i < 4; ++i) sum[i] = c[threadIdx.x * 4 + i];                                    \
    emu_mma_##name(sum, fa, fb, sum);                                                               \
    for (int i = 0; i < 4; ++i) d[threadIdx.x * 4 + i] = sum[i];                                    \
  }
#define FLOATS float *d, const unsigned *a, const unsigned *b, const float *c
#define INTS int *d, const unsigned *a, const unsigned *b, const int *c
extern "C" __global__ void m16n8k16_bf16(FLOATS) { PRODUCT(m16n8k16_bf16, float, 4, 2) }
extern "C" __global__ void m16n8k16_f16(FLOATS) { PRODUCT(m16n8k16_f16, float, 4, 2) }
extern "C" __global__ void m16n8k8_bf16(FLOATS) { PRODUCT(m16n8k8_bf16, float, 2, 1) }
extern "C" __global__ void m16n8k8_f16(FLOATS) { PRODUCT(m16n8k8_f16, float, 2, 1) }
extern "C" __global__ void m16n8k8_tf32(FLOATS) { PRODUCT(m16n8k8_tf32, float, 4, 2) }
extern "C" __global__ void m16n8k32_s8(INTS) { PRODUCT(m16n8k32_s8, int, 4, 2) }
extern "C" __global__ void m16n8k16_s8(INTS) { PRODUCT(m16n8k16_s8, int, 2, 1) }
extern "C" __global__ void m16n8k32_e4m3(FLOATS) { PRODUCT(m16n8k32_e4m3, float, 4, 2) }

extern "C" __global__ void load_matrices(unsigned *out, const unsigned short *in, int count, int transpose) {
  __shared__ __align__(16) unsigned short rows[32][8];
  for (int i = 0; i < 8; ++i) rows[threadIdx.x][i] = in[threadIdx.x * 8 + i];
  __syncwarp();
  unsigned r[4] = {0, 0, 0, 0};
  emu_ldmatrix(r, rows[threadIdx.x % (8 * count)], count, transpose != 0);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = r[i];
}
extern "C" __global__ void store_matrices(unsigned short *out, const unsigned *in, int count, int transpose) {
  __shared__ __align__(16) unsigned short rows[32][8];
  emu_stmatrix(rows[threadIdx.x % (8 * count)], in + threadIdx.x * 4, count, transpose != 0);
  __syncwarp();
  if (threadIdx.x < 8 * count)
    for (int i = 0; i < 8; ++i) out[threadIdx.x * 8 + i] = rows[threadIdx.x][i];
}

extern "C" __global__ void words(unsigned *out, const unsigned *in, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const unsigned a = in[3 * i], b = in[3 * i + 1], c = in[3 * i + 2];
  unsigned *own = out + 12 * i;
  own[0] = emu_lop3(a, b, c, 0xea);
  own[1] = emu_lop3(a, b, c, 0x96);
  own[2] = emu_prmt(a, b, c & 0xffff);
  own[3] = __byte_perm(a, b, c & 0x7777);
  own[4] = (unsigned)__dp4a((int)a, (int)b, (int)c);
  own[5] = __dp4a(a, b, c);
  own[6] = __funnelshift_l(a, b, c);
  own[7] = __funnelshift_r(a, b, c);
  own[8] = __brev(a);
  own[9] = (unsigned)(__popc(a) + 100 * __clz((int)b) + 10000 * __ffs((int)c));
  own[10] = __umulhi(a, b);
  own[11] = (unsigned)__mulhi((int)a, (int)b);
}

extern "C" __global__ void to_floats(float *half_out, float *bf16_out, float *e4m3_out) {
  const unsigned short i = (unsigned short)(blockIdx.x * blockDim.x + threadIdx.x);
  half_out[i] = __half2float(__ushort_as_half(i));
  bf16_out[i] = __bfloat162float(__ushort_as_bfloat16(i));
  const unsigned pair = emu_e4m3x2_to_f16x2(i);
  e4m3_out[i] = __half2float(__ushort_as_half((unsigned short)(i & 1 ? pair >> 16 : pair)));
}
extern "C" __global__ void from_floats(unsigned short *half_out, unsigned short *bf16_out, unsigned char *e4m3_out, const float *in) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  half_out[i] = __half_as_ushort(__float2half_rn(in[i]));
  bf16_out[i] = __bfloat16_as_ushort(__float2bfloat16(in[i]));
  e4m3_out[i] = (unsigned char)(i & 1 ? emu_f32x2_to_e4m3x2(0.0f, in[i]) >> 8 : emu_f32x2_to_e4m3x2(in[i], 0.0f));
}
extern "C" __global__ void pairs(float *out, const float *in) {
  const float *own = in + 6 * threadIdx.x;
  const __half2 a = __floats2half2_rn(own[0], own[1]), b = __floats2half2_rn(own[2], own[3]), c = __floats2half2_rn(own[4], own[5]);
  const float2 sum = __half22float2(__hfma2(a, b, c)), less = __half22float2(__hsub2(__hmul2(a, b), c));
  const __nv_bfloat162 d = __floats2bfloat162_rn(own[0], own[1]), e = __floats2bfloat162_rn(own[2], own[3]);
  const float2 most = __bfloat1622float2(__hmax2(d, e));
  float *to = out + 6 * threadIdx.x;
  to[0] = sum.x, to[1] = sum.y, to[2] = less.x, to[3] = less.y, to[4] = most.x, to[5] = most.y;
}
