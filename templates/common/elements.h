/* Functions of one element, the same text in C, CUDA and Metal, without branches so that compilers make vectors of them. A device
   says before what FLOAT_OF, BITS_OF and the functions of its library are (el_sqrt, el_floor, el_sin, el_cos, el_pow, el_fmod). */

INLINE float el_infinity(void) { return FLOAT_OF(0x7f800000u); }
INLINE float el_nan(void) { return FLOAT_OF(0x7fc00000u); }

/* e^x; relative error below 2e-7. Cody-Waite reduction and a degree-6 polynomial; 2^n as two factors, so that results beyond the
   range become infinite, denormal or zero as they should. Adding 1.5 * 2^23 rounds to an integer, in the low bits. */
INLINE float el_exp(float x) {
  const float low = x < -110.0f ? -110.0f : x, y = low > 90.0f ? 90.0f : low;
  const float t = y * 1.44269504f + 12582912.0f, n = t - 12582912.0f;
  const int whole = (int)BITS_OF(t) - 0x4b400000, first = whole >> 1; /* of two factors */
  float r = y - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * FLOAT_OF((unsigned)(first + 127) << 23) * FLOAT_OF((unsigned)(whole - first + 127) << 23);
}

/* The natural logarithm; relative error below 2e-7. The mantissa lies in [sqrt(1/2), sqrt(2)). */
INLINE float el_log(float x) {
  const float tiny = x < 1.17549435e-38f ? 1.0f : 0.0f, y = tiny > 0.0f ? x * 8388608.0f : x;
  const unsigned u = BITS_OF(y) - 0x3f3504f3u;
  const float e = (float)((int)u >> 23) - 23.0f * tiny;
  const float f = FLOAT_OF((u & 0x007fffffu) + 0x3f3504f3u) - 1.0f, z = f * f;
  float p = 7.0376836292e-2f * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float r = (p * f * z - e * 2.12194440e-4f - 0.5f * z + f) + e * 0.693359375f;
  const float edge = x == 0.0f ? -el_infinity() : el_nan(), finite = x > 0.0f ? r : edge;
  return x == el_infinity() ? x : finite;
}

/* Kahan's forms: the rounding of 1 + x, and of e^x, is taken back. */
INLINE float el_log1p(float x) {
  const float u = 1.0f + x, d = u - 1.0f, y = el_log(u), exact = y * (x / d);
  const float r = d == 0.0f ? x : exact;
  return x > 1e8f ? y : r;
}
INLINE float el_expm1(float x) {
  const float u = el_exp(x), d = u - 1.0f, exact = d * (x / el_log(u));
  const float small = d == 0.0f ? x : exact, r = d == -1.0f ? -1.0f : small;
  return x > 40.0f ? u : r;
}

INLINE float el_sigmoid(float x) { return 1.0f / (1.0f + el_exp(-x)); }
INLINE float el_silu(float x) { return x / (1.0f + el_exp(-x)); }

/* Below 0.625 an odd polynomial, so that small results keep their digits. */
INLINE float el_tanh(float x) {
  const float a = x < 0.0f ? -x : x, z = x * x;
  float p = -5.70498872745e-3f * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near = p * z * x + x, far = 1.0f - 2.0f / (el_exp(2.0f * a) + 1.0f);
  return a < 0.625f ? near : x < 0.0f ? -far : far;
}

/* Below 1 an odd polynomial, above formula 7.1.26 of Abramowitz and Stegun: error below 1.5e-7. */
INLINE float el_erf(float x) {
  const float a = x < 0.0f ? -x : x, z = x * x, t = 1.0f / (1.0f + 0.3275911f * a);
  float p = 7.853861353153693e-5f * z - 8.010193625184903e-4f;
  p = p * z + 5.188327685732524e-3f;
  p = p * z - 2.685381193529856e-2f;
  p = p * z + 1.128358514861418e-1f;
  p = p * z - 3.761262582423300e-1f;
  p = p * z + 1.128379165726710f;
  float q = t * 1.061405429f - 1.453152027f;
  q = q * t + 1.421413741f;
  q = q * t - 0.284496736f;
  q = q * t + 0.254829592f;
  const float far = 1.0f - q * t * el_exp(-z);
  return a < 1.0f ? p * x : x < 0.0f ? -far : far;
}

/* x times the probability that a standard normal number is below x; far below zero the result keeps its digits. */
INLINE float el_gelu(float x) {
  const float z = (x < 0.0f ? -x : x) * 0.707106781f, t = 1.0f / (1.0f + 0.3275911f * z);
  float p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float tail = 0.5f * x * (p * t * el_exp(-z * z)), above = x > 20.0f ? x : x - tail;
  return x < 0.0f ? tail : above;
}

/* (1 + tanh(u)) / 2 is the logistic function of 2 u. */
INLINE float el_gelu_tanh(float x) { return x / (1.0f + el_exp(-1.595769122f * x * (1.0f + 0.044715f * x * x))); }

/* The larger and the smaller; what is no number stays. */
INLINE float el_max(float x, float y) { return x > y || x != x ? x : y; }
INLINE float el_min(float x, float y) { return x < y || x != x ? x : y; }
INLINE float el_abs(float x) { return x < 0.0f ? -x : x; }

/* Quotients are rounded down, remainders have the divisor's sign. */
INLINE float el_mod(float x, float y) {
  const float r = el_fmod(x, y);
  return r != 0.0f && (r < 0.0f) != (y < 0.0f) ? r + y : r;
}
INLINE int el_floor_div_int(int x, int y) {
  const int q = y ? x / y : 0;
  return y && x % y && (x < 0) != (y < 0) ? q - 1 : q;
}
INLINE int el_mod_int(int x, int y) { return y ? x - y * el_floor_div_int(x, y) : 0; }
INLINE int el_max_int(int x, int y) { return x > y ? x : y; }
INLINE int el_min_int(int x, int y) { return x < y ? x : y; }
INLINE int el_abs_int(int x) { return x < 0 ? -x : x; }
INLINE int el_pow_int(int x, int n) {
  int r = 1;
  for (; n > 0; --n) r *= x;
  return r;
}
