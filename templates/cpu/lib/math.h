/* Scalar helpers in a form that compilers turn into vectors. */
#include <math.h>

INLINE float bits_f32(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
INLINE uint32_t f32_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
INLINE float bf16_to_f32(uint16_t h) { return bits_f32((uint32_t)h << 16); }

/* Round to nearest even; a NaN stays one. */
INLINE uint16_t f32_to_bf16(float f) {
  uint32_t u = f32_bits(f);
  return (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? 0x7fff : (u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

INLINE int32_t nearest(float x) { return (int32_t)(x + (x < 0.0f ? -0.5f : 0.5f)); }

/* e^x for x <= 88; relative error below 2e-7. Cody-Waite reduction and a degree-6 polynomial; -inf gives 0. */
INLINE float fast_exp(float x) {
  x = x < -87.3f ? -87.3f : x;
  float y = x * 1.44269504f;
  int32_t i = (int32_t)(y + (y < 0.0f ? -0.5f : 0.5f));
  float n = (float)i, r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  float e = p * bits_f32((uint32_t)(i + 127) << 23);
  return x <= -87.3f ? 0.0f : e;
}


INLINE vf vf_select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
INLINE vf vf_max(vf a, vf b) {
#if LANES == 16
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return vf_select((vi)(a > b), a, b);
#endif
}

INLINE float vf_peak(vf v) {
#if LANES == 16
  return _mm512_reduce_max_ps((__m512)v);
#else
  float x = v[0];
  for (int i = 1; i < LANES; ++i) x = v[i] > x ? v[i] : x;
  return x;
#endif
}

INLINE float vf_sum(vf v) {
#if LANES == 16
  return _mm512_reduce_add_ps((__m512)v);
#else
  float x = v[0];
  for (int i = 1; i < LANES; ++i) x += v[i];
  return x;
#endif
}

/* fast_exp of each lane, written with vectors because compilers do not turn its choices into masks. */
INLINE vf vf_exp(vf v) {
  const vf low = vf_set(-87.3f), x = vf_max(v, low);
  const vf n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* adding 1.5 * 2^23 rounds to an integer */
  vf r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const vf e = p * (vf)((__builtin_convertvector(n, vi) + 127) << 23);
  return (vf)((vi)e & (vi)(v > low));
}

INLINE vf vf_silu(vf x) { return x / (1.0f + vf_exp(-vf_max(x, vf_set(-88.0f)))); }

/* x times the probability that a standard normal number is below x. erfc is formula 7.1.26 of Abramowitz and Stegun: error
   below 1.5e-7, and far below zero the result keeps its digits. */
INLINE vf vf_gelu(vf x) {
  const vf z = vf_max(x, -x) * 0.707106781f, t = 1.0f / (1.0f + 0.3275911f * z);
  vf p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const vf tail = 0.5f * x * (p * t * vf_exp(-z * z));
  return vf_select((vi)(x < vf_set(0.0f)), tail, x - tail);
}

/* (1 + tanh(u)) / 2 is the logistic function of 2 u. */
INLINE vf vf_gelu_tanh(vf x) {
  const vf u = 1.595769122f * x * (1.0f + 0.044715f * x * x);
  return x / (1.0f + vf_exp(-vf_max(u, vf_set(-88.0f))));
}
