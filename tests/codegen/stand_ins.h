/* What the kernels' sources call of AVX-512 and of NEON, one lane after the other in plain C, so that every branch of the templates
   runs on any x86-64 machine. After the compiler's own header, whose names these take. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t c_u8 __attribute__((vector_size(64)));
typedef int8_t c_i8 __attribute__((vector_size(64)));
typedef uint16_t c_u16 __attribute__((vector_size(64)));
typedef int16_t c_i16 __attribute__((vector_size(64)));
typedef int32_t c_i32 __attribute__((vector_size(64)));
typedef float c_f32 __attribute__((vector_size(64)));
#define C static inline __attribute__((always_inline))

C c_i32 c_madd(c_i16 x, c_i16 y) {
  c_i32 sum;
  for (int i = 0; i < 16; ++i) sum[i] = x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
  return sum;
}
C c_i16 c_maddubs(c_u8 w, c_i8 a) {
  c_i16 sum;
  for (int i = 0; i < 32; ++i) {
    const int exact = w[2 * i] * a[2 * i] + w[2 * i + 1] * a[2 * i + 1];
    sum[i] = (int16_t)(exact > 32767 ? 32767 : exact < -32768 ? -32768 : exact);
  }
  return sum;
}
C c_i32 c_dpbusd(c_i32 acc, c_u8 w, c_i8 a) {
  for (int i = 0; i < 64; ++i) acc[i / 4] += w[i] * a[i];
  return acc;
}
C c_f32 c_dpbf16(c_f32 acc, c_u16 w, c_u16 a) {
  for (int i = 0; i < 32; ++i) {
    const uint32_t x = (uint32_t)w[i] << 16, y = (uint32_t)a[i] << 16;
    float left, right;
    memcpy(&left, &x, 4);
    memcpy(&right, &y, 4);
    acc[i / 2] += left * right;
  }
  return acc;
}
C c_u8 c_shuffle(c_u8 v, c_u8 at) { /* within 16 bytes, zero where the top bit is set */
  c_u8 out;
  for (int i = 0; i < 64; ++i) out[i] = at[i] & 128 ? 0 : v[i / 16 * 16 + at[i] % 16];
  return out;
}
C c_u8 c_only(uint64_t mask, c_u8 v) {
  for (int i = 0; i < 64; ++i) v[i] = mask >> i & 1 ? v[i] : 0;
  return v;
}
C c_f32 c_half(__m256i h) {
  c_f32 out;
  const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(h)), high = _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1));
  memcpy(&out, &low, 32);
  memcpy((char *)&out + 32, &high, 32);
  return out;
}
C c_i32 c_widened(__m128i bytes) {
  c_i32 out;
  uint8_t b[16];
  memcpy(b, &bytes, 16);
  for (int i = 0; i < 16; ++i) out[i] = b[i];
  return out;
}
C c_i32 c_fours(int d, int c, int b, int a) { return (c_i32){a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d}; }
C int32_t c_sum(c_i32 v) {
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += v[i];
  return sum;
}
C float c_sum_f(c_f32 v) {
  float sum = 0.0f;
  for (int i = 0; i < 16; ++i) sum += v[i];
  return sum;
}
C c_f32 c_max(c_f32 x, c_f32 y) {
  for (int i = 0; i < 16; ++i) x[i] = x[i] > y[i] ? x[i] : y[i];
  return x;
}
C float c_most(c_f32 v) {
  float most = v[0];
  for (int i = 1; i < 16; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

#define _mm512_madd_epi16(x, y) ((__m512i)c_madd((c_i16)(x), (c_i16)(y)))
#define _mm512_maddubs_epi16(w, a) ((__m512i)c_maddubs((c_u8)(w), (c_i8)(a)))
#define _mm512_dpbusd_epi32(acc, w, a) ((__m512i)c_dpbusd((c_i32)(acc), (c_u8)(w), (c_i8)(a)))
#define _mm512_dpbf16_ps(acc, w, a) ((__m512)c_dpbf16((c_f32)(acc), (c_u16)(w), (c_u16)(a)))
#define _mm512_shuffle_epi8(v, at) ((__m512i)c_shuffle((c_u8)(v), (c_u8)(at)))
#define _mm512_maskz_shuffle_epi8(mask, v, at) ((__m512i)c_only(mask, c_shuffle((c_u8)(v), (c_u8)(at))))
#define _mm512_cvtph_ps(h) ((__m512)c_half(h))
#define _mm512_cvtepu8_epi32(b) ((__m512i)c_widened(b))
#define _mm512_cvtepi32_ps(v) ((__m512)__builtin_convertvector((c_i32)(v), c_f32))
#define _mm512_set4_epi32(d, c, b, a) ((__m512i)c_fours(d, c, b, a))
#define _mm512_set1_epi8(x) ((__m512i)((int8_t)(x) - (c_i8){0}))
#define _mm512_set1_epi16(x) ((__m512i)((int16_t)(x) - (c_i16){0}))
#define _mm512_set1_epi32(x) ((__m512i)((int32_t)(x) - (c_i32){0}))
#define _mm512_add_epi32(x, y) ((__m512i)((c_i32)(x) + (c_i32)(y)))
#define _mm512_and_si512(x, y) ((__m512i)((c_i32)(x) & (c_i32)(y)))
#define _mm512_slli_epi16(x, n) ((__m512i)((c_u16)(x) << (n)))
#define _mm512_srli_epi16(x, n) ((__m512i)((c_u16)(x) >> (n)))
#define _mm512_srai_epi16(x, n) ((__m512i)((c_i16)(x) >> (n)))
#define _mm512_max_ps(x, y) ((__m512)c_max((c_f32)(x), (c_f32)(y)))
#define _mm512_reduce_add_epi32(v) c_sum((c_i32)(v))
#define _mm512_reduce_add_ps(v) c_sum_f((c_f32)(v))
#define _mm512_reduce_max_ps(v) c_most((c_f32)(v))

typedef int8_t int8x8_t __attribute__((vector_size(8)));
typedef int8_t int8x16_t __attribute__((vector_size(16)));
typedef uint8_t uint8x16_t __attribute__((vector_size(16)));
typedef int16_t int16x8_t __attribute__((vector_size(16)));
typedef int32_t int32x4_t __attribute__((vector_size(16)));
C int32x4_t vusdotq_s32(int32x4_t acc, uint8x16_t w, int8x16_t a) {
  for (int i = 0; i < 16; ++i) acc[i / 4] += w[i] * a[i];
  return acc;
}
C int32x4_t vdotq_s32(int32x4_t acc, int8x16_t w, int8x16_t a) {
  for (int i = 0; i < 16; ++i) acc[i / 4] += w[i] * a[i];
  return acc;
}
C uint8x16_t vdupq_n_u8(uint8_t x) { return x - (uint8x16_t){0}; }
C uint8x16_t veorq_u8(uint8x16_t x, uint8x16_t y) { return x ^ y; }
C int8x8_t vget_low_s8(int8x16_t v) {
  int8x8_t half;
  memcpy(&half, &v, 8);
  return half;
}
C int8x8_t vget_high_s8(int8x16_t v) {
  int8x8_t half;
  memcpy(&half, (char *)&v + 8, 8);
  return half;
}
C int16x8_t vmull_s8(int8x8_t x, int8x8_t y) {
  int16x8_t product;
  for (int i = 0; i < 8; ++i) product[i] = (int16_t)(x[i] * y[i]);
  return product;
}
C int32x4_t vpaddlq_s16(int16x8_t v) {
  int32x4_t sum;
  for (int i = 0; i < 4; ++i) sum[i] = v[2 * i] + v[2 * i + 1];
  return sum;
}
C int32x4_t vpaddq_s32(int32x4_t x, int32x4_t y) { return (int32x4_t){x[0] + x[1], x[2] + x[3], y[0] + y[1], y[2] + y[3]}; }
