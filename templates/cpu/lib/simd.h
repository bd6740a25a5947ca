/* Vectors of LANES 32-bit values and the three operations that differ between instruction sets:
   dot_u8s8 (four unsigned weights times four signed activations per lane), dot_bf16 (two bfloat16 pairs per lane) and
   load_f16. All else is the compilers' vector extension. */
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef float vf_u __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef int32_t vi_u __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))

INLINE vf vf_set(float x) { return x - (vf){0}; }
INLINE vi vi_set(int32_t x) { return x - (vi){0}; }
INLINE vf vf_load(const float *p) { return *(const vf_u *)p; }
INLINE void vf_store(float *p, vf v) { *(vf_u *)p = v; }
INLINE vi vi_load(const void *p) { return *(const vi_u *)p; }
INLINE void vi_store(void *p, vi v) { *(vi_u *)p = v; }
INLINE vf vf_cvt(vi v) { return __builtin_convertvector(v, vf); }
/* A single stream of memory, at p now: the second cache is filled from far ahead, where more lines can be under way than the
   first one waits for, and the first from near. */
INLINE void fetch_ahead(const uint8_t *p) {
  __builtin_prefetch(p + 16384, 0, 2);
  __builtin_prefetch(p + 2048);
}

/* The same beside many products, p being a line of the next chunk. */
INLINE void fetch_chunk(const uint8_t *p) {
  __builtin_prefetch(p + 8192, 0, 2);
  __builtin_prefetch(p);
}

/* The same where the addresses to come are known but do not follow. */
INLINE void fetch_far(const uint8_t *far, const uint8_t *p) {
  __builtin_prefetch(far, 0, 2);
  __builtin_prefetch(p + 1024);
}

INLINE int32_t load_i32(const void *p) { int32_t v; memcpy(&v, p, 4); return v; }
INLINE float load_f32(const void *p) { float v; memcpy(&v, p, 4); return v; }
INLINE void store_i32(void *p, int32_t v) { memcpy(p, &v, 4); }
INLINE void store_f32(void *p, float v) { memcpy(p, &v, 4); }

/* DOT_BIAS: subtracted from every unsigned weight by the instruction at hand; the caller's zero point shrinks by it. */
#if defined(SIMD_avx512_bf16) || defined(SIMD_avx512_vnni)
#define DOT_BIAS 0
INLINE vi dot_u8s8(vi acc, vi w, vi a) { return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)a); }
#elif defined(SIMD_avx512)
#define DOT_BIAS 0
INLINE vi dot_u8s8(vi acc, vi w, vi a) {
  const __m512i even = _mm512_set1_epi32(0x00ff00ff), x = (__m512i)w, y = (__m512i)a;
  __m512i lo = _mm512_madd_epi16(_mm512_and_si512(x, even), _mm512_srai_epi16(_mm512_slli_epi16(y, 8), 8));
  __m512i hi = _mm512_madd_epi16(_mm512_srli_epi16(x, 8), _mm512_srai_epi16(y, 8));
  return acc + (vi)lo + (vi)hi;
}
#elif defined(SIMD_avx2)
#define DOT_BIAS 0
INLINE vi dot_u8s8(vi acc, vi w, vi a) {
  const __m256i even = _mm256_set1_epi32(0x00ff00ff), x = (__m256i)w, y = (__m256i)a;
  __m256i lo = _mm256_madd_epi16(_mm256_and_si256(x, even), _mm256_srai_epi16(_mm256_slli_epi16(y, 8), 8));
  __m256i hi = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(y, 8));
  return acc + (vi)lo + (vi)hi;
}
#elif defined(SIMD_sse2)
#define DOT_BIAS 0
INLINE vi dot_u8s8(vi acc, vi w, vi a) {
  const __m128i even = _mm_set1_epi32(0x00ff00ff), x = (__m128i)w, y = (__m128i)a;
  __m128i lo = _mm_madd_epi16(_mm_and_si128(x, even), _mm_srai_epi16(_mm_slli_epi16(y, 8), 8));
  __m128i hi = _mm_madd_epi16(_mm_srli_epi16(x, 8), _mm_srai_epi16(y, 8));
  return acc + (vi)lo + (vi)hi;
}
#elif defined(SIMD_neon_i8mm)
#define DOT_BIAS 0
INLINE vi dot_u8s8(vi acc, vi w, vi a) { return (vi)vusdotq_s32((int32x4_t)acc, (uint8x16_t)w, (int8x16_t)a); }
#elif defined(SIMD_neon_dotprod)
#define DOT_BIAS 128
INLINE vi dot_u8s8(vi acc, vi w, vi a) {
  return (vi)vdotq_s32((int32x4_t)acc, (int8x16_t)veorq_u8((uint8x16_t)w, vdupq_n_u8(0x80)), (int8x16_t)a);
}
#elif defined(SIMD_neon)
#define DOT_BIAS 128
INLINE vi dot_u8s8(vi acc, vi w, vi a) {
  int8x16_t x = (int8x16_t)veorq_u8((uint8x16_t)w, vdupq_n_u8(0x80)), y = (int8x16_t)a;
  int32x4_t lo = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(y)));
  int32x4_t hi = vpaddlq_s16(vmull_s8(vget_high_s8(x), vget_high_s8(y)));
  return acc + (vi)vpaddq_s32(lo, hi);
}
#endif

/* Two products of neighbours in each half of a lane, for weights that leave room for it: their sums in 16 bits, then in lanes. */
#if defined(SIMD_avx512)
INLINE vi pairs_u7s8(vi w, vi a) { return (vi)_mm512_maddubs_epi16((__m512i)w, (__m512i)a); }
INLINE vi sum_pairs(vi acc, vi pairs) { return acc + (vi)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi16(1)); }
#elif defined(SIMD_avx2)
INLINE vi pairs_u7s8(vi w, vi a) { return (vi)_mm256_maddubs_epi16((__m256i)w, (__m256i)a); }
INLINE vi sum_pairs(vi acc, vi pairs) { return acc + (vi)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1)); }
#endif

/* dot_u8s8 with the four bytes at p + offset in every lane. By hand, for compilers keep such addresses in registers, of which
   there are too few; offset is a constant. */
#if defined(__clang__)
typedef struct { char bytes[1 << 20]; } Reachable; /* it knows no array of unknown length here */
#define REACHABLE(p) (*(const Reachable *)(p))
#else
#define REACHABLE(p) (*(const char(*)[])(p)) /* a length would be checked against the object's */
#endif
#if defined(SIMD_avx512_bf16) || defined(SIMD_avx512_vnni)
#define DOT_U8S8_AT(acc, w, p, offset) \
  __asm__("vpdpbusd %c4(%3)%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(REACHABLE(p)), "r"(p), "i"(offset))
#else
#define DOT_U8S8_AT(acc, w, p, offset) acc = dot_u8s8(acc, w, vi_set(load_i32((p) + (offset))))
#endif

#if LANES == 16
#define FMA_AT(acc, w, p, offset) \
  __asm__("vfmadd231ps %c4(%3)%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(REACHABLE(p)), "r"(p), "i"(offset))
#else
#define FMA_AT(acc, w, p, offset) acc += (w) * vf_set(load_f32((p) + (offset)))
#endif

/* Bytes and halves of lanes. */
typedef uint8_t vb __attribute__((vector_size(4 * LANES)));
typedef int8_t vc __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(4 * LANES)));
INLINE vi add_u8(vi a, vi b) { return (vi)((vb)a + (vb)b); }
INLINE vi sub_u8(vi a, vi b) { return (vi)((vb)a - (vb)b); }
INLINE vi add_u16(vi a, vi b) { return (vi)((vh)a + (vh)b); }
INLINE vi mul_u16(vi a, vi b) { return (vi)((vh)a * (vh)b); }
/* Bytes of ones where the top bit is set. */
INLINE vi top_bits(vi v) { return (vi)((vc)v < 0); }
/* Byte h of every lane, signed, as a float. */
INLINE vf byte_of(vi v, int h) { return vf_cvt((v << (24 - 8 * h)) >> 24); }
/* Byte h of every lane, in both its halves and in all its bytes. */
#if LANES == 16
INLINE vi spread_u16(vi v, int h) {
  return (vi)_mm512_maskz_shuffle_epi8(0x5555555555555555, (__m512i)v, _mm512_add_epi32(_mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0), _mm512_set1_epi8((char)h)));
}
INLINE vi spread_u8(vi v, int h) {
  return (vi)_mm512_shuffle_epi8((__m512i)v, _mm512_add_epi32(_mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0), _mm512_set1_epi8((char)h)));
}
#else
INLINE vi spread_u16(vi v, int h) {
  const vi b = (vi)((vu)v >> (8 * h)) & 0xff;
  return b | b << 16;
}
INLINE vi spread_u8(vi v, int h) {
  const vi b = spread_u16(v, h);
  return b | b << 8;
}
#endif

/* w: LANES pairs of bfloat16; a: one pair, broadcast. */
#if defined(SIMD_avx512_bf16)
INLINE vf dot_bf16(vf acc, vi w, vi a) { return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)a); }
#else
INLINE vf dot_bf16(vf acc, vi w, vi a) {
  const vi high = vi_set((int32_t)0xffff0000);
  acc += (vf)(w << 16) * (vf)(a << 16);
  return acc + (vf)(w & high) * (vf)(a & high);
}
#endif

INLINE float f16_to_f32(uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, body = (uint32_t)(h & 0x7fff) << 13, bits;
  float magnitude;
  memcpy(&magnitude, &body, 4);
  magnitude *= 0x1p112f; /* moves the exponent bias from 15 to 127, denormals included */
  memcpy(&bits, &magnitude, 4);
  bits |= sign;
  memcpy(&magnitude, &bits, 4);
  return magnitude;
#endif
}

INLINE vf load_f16(const uint16_t *p) {
#if LANES == 16
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif LANES == 8
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#elif defined(__aarch64__)
  return (vf)vcvt_f32_f16(vld1_f16((const __fp16 *)p));
#else
  vf v;
  for (int i = 0; i < LANES; ++i) v[i] = f16_to_f32(p[i]);
  return v;
#endif
}

INLINE vf load_bf16(const uint16_t *p) {
  typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
  return (vf)(__builtin_convertvector(*(const halves *)p, vi) << 16);
}

INLINE vf load_u8(const uint8_t *p) {
#if LANES == 16
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
#else
  vf v;
  for (int i = 0; i < LANES; ++i) v[i] = (float)p[i];
  return v;
#endif
}

/* The nearest integers of |v| < 2^22: adding 1.5 * 2^23 rounds, and leaves them in the low bits. */
INLINE vi vf_round(vf v) { return (vi)(v + 12582912.0f) - 0x4b400000; }

/* The low bytes, one after the other. */
INLINE void vi_store8(void *p, vi v) {
  typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
  *(bytes *)p = __builtin_convertvector(v, bytes);
}

INLINE int32_t vi_sum(vi v) {
#if LANES == 16
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t x = v[0];
  for (int i = 1; i < LANES; ++i) x += v[i];
  return x;
#endif
}
