/* Scalar helpers in a form that compilers turn into vectors. */
#include <math.h>

INLINE float bits_f32(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
INLINE uint32_t f32_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
INLINE float bf16_to_f32(uint16_t h) { return bits_f32((uint32_t)h << 16); }

/* Round to nearest even. */
INLINE uint16_t f32_to_bf16(float f) {
  uint32_t u = f32_bits(f);
  return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

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

INLINE float silu(float x) { return x / (1.0f + fast_exp(-x > 88.0f ? 88.0f : -x)); }
