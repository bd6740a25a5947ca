/* Numbers that all kernels share; FLOAT_OF and BITS_OF are the machine's own. */
INLINE int min_int(int a, int b) { return a < b ? a : b; }
INLINE int max_int(int a, int b) { return a > b ? a : b; }
INLINE float minus_infinity(void) { return FLOAT_OF(0xff800000u); }
INLINE float bf16_to_f32(u16 h) { return FLOAT_OF((u32)h << 16); }

/* Round to nearest even; a NaN is 0x7fff, as the conversion of NVIDIA's hardware gives. */
INLINE u16 f32_to_bf16(float f) {
  const u32 u = BITS_OF(f);
  return (u16)((u & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

/* e^x for x <= 88; relative error below 2e-7. Cody-Waite reduction and a degree-6 polynomial; -inf gives 0. The same
   function as on the CPU, so that a draw depends on the logits alone. */
INLINE float fast_exp(float x) {
  const float limited = x < -87.3f ? -87.3f : x;
  const float y = limited * 1.44269504f;
  const int i = (int)(y + (y < 0.0f ? -0.5f : 0.5f));
  const float n = (float)i;
  float r = limited - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return x <= -87.3f ? 0.0f : p * FLOAT_OF((u32)(i + 127) << 23);
}

INLINE float silu(float x) { return x / (1.0f + fast_exp(-x > 88.0f ? 88.0f : -x)); }

/* x times the probability that a standard normal number is below x. erfc is formula 7.1.26 of Abramowitz and Stegun: error
   below 1.5e-7, and far below zero the result keeps its digits. */
INLINE float gelu(float x) {
  const float z = (x < 0.0f ? -x : x) * 0.707106781f, t = 1.0f / (1.0f + 0.3275911f * z);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float tail = 0.5f * x * (p * t * fast_exp(-z * z));
  return x < 0.0f ? tail : x - tail;
}

/* (1 + tanh(u)) / 2 is the logistic function of 2 u. */
INLINE float gelu_tanh(float x) {
  const float u = -1.595769122f * x * (1.0f + 0.044715f * x * x);
  return x / (1.0f + fast_exp(u > 88.0f ? 88.0f : u));
}
