/* __half and __nv_bfloat16 with their pairs, and 8-bit floats: the names of cuda_fp16.h, cuda_bf16.h and cuda_fp8.h.
   Arithmetic is done in float and rounded once. */
#pragma once

#define EMU_FLOAT16(H, H2, read, write)                                                                     \
  struct __align__(2) H {                                                                                   \
    unsigned short emu_bits;                                                                                \
    H() = default;                                                                                          \
    H(float x) : emu_bits(write(x)) {}                                                                      \
    H(int x) : emu_bits(write((float)x)) {}                                                                 \
    operator float() const { return read(emu_bits); }                                                       \
    H &operator+=(H o) { return *this = H((float)*this + (float)o); }                                       \
    H &operator-=(H o) { return *this = H((float)*this - (float)o); }                                       \
    H &operator*=(H o) { return *this = H((float)*this * (float)o); }                                       \
  };                                                                                                        \
  struct __align__(4) H2 {                                                                                  \
    H x, y;                                                                                                 \
    H2() = default;                                                                                         \
    H2(H x, H y) : x(x), y(y) {}                                                                            \
  };                                                                                                        \
  static inline H emu_make(H *, float x) { return H(x); }                                                   \
  static inline H operator+(H a, H b) { return H((float)a + (float)b); }                                    \
  static inline H operator-(H a, H b) { return H((float)a - (float)b); }                                    \
  static inline H operator*(H a, H b) { return H((float)a * (float)b); }                                    \
  static inline H operator/(H a, H b) { return H((float)a / (float)b); }                                    \
  static inline H operator-(H a) { return H(-(float)a); }                                                   \
  static inline H2 operator+(H2 a, H2 b) { return H2(a.x + b.x, a.y + b.y); }                               \
  static inline H2 operator-(H2 a, H2 b) { return H2(a.x - b.x, a.y - b.y); }                               \
  static inline H2 operator*(H2 a, H2 b) { return H2(a.x * b.x, a.y * b.y); }                               \
  static inline H __hadd(H a, H b) { return a + b; }                                                        \
  static inline H __hsub(H a, H b) { return a - b; }                                                        \
  static inline H __hmul(H a, H b) { return a * b; }                                                        \
  static inline H __hdiv(H a, H b) { return a / b; }                                                        \
  static inline H __hneg(H a) { return -a; }                                                                \
  static inline H __habs(H a) { return H(fabsf(a)); }                                                       \
  static inline H __hmax(H a, H b) { return H(fmaxf(a, b)); }                                               \
  static inline H __hmin(H a, H b) { return H(fminf(a, b)); }                                               \
  static inline H __hfma(H a, H b, H c) { return H(fmaf(a, b, c)); }                                        \
  static inline bool __hgt(H a, H b) { return (float)a > (float)b; }                                        \
  static inline bool __hge(H a, H b) { return (float)a >= (float)b; }                                       \
  static inline bool __hlt(H a, H b) { return (float)a < (float)b; }                                        \
  static inline bool __hle(H a, H b) { return (float)a <= (float)b; }                                       \
  static inline bool __heq(H a, H b) { return (float)a == (float)b; }                                       \
  static inline bool __hisnan(H a) { return (float)a != (float)a; }                                         \
  static inline H2 __hadd2(H2 a, H2 b) { return a + b; }                                                    \
  static inline H2 __hsub2(H2 a, H2 b) { return a - b; }                                                    \
  static inline H2 __hmul2(H2 a, H2 b) { return a * b; }                                                    \
  static inline H2 __hneg2(H2 a) { return H2(-a.x, -a.y); }                                                 \
  static inline H2 __hmax2(H2 a, H2 b) { return H2(__hmax(a.x, b.x), __hmax(a.y, b.y)); }                   \
  static inline H2 __hmin2(H2 a, H2 b) { return H2(__hmin(a.x, b.x), __hmin(a.y, b.y)); }                   \
  static inline H2 __hfma2(H2 a, H2 b, H2 c) { return H2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); }   \
  static inline float2 emu_floats(H2 a) { return make_float2((float)a.x, (float)a.y); }

EMU_FLOAT16(__half, __half2, emu_from_f16, emu_to_f16)
EMU_FLOAT16(__nv_bfloat16, __nv_bfloat162, emu_from_bf16, emu_to_bf16)
#undef EMU_FLOAT16
typedef __half half;
typedef __half2 half2;
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

static inline __half __float2half(float x) { return __half(x); }
static inline __half __float2half_rn(float x) { return __half(x); }
static inline float __half2float(__half x) { return (float)x; }
static inline __half __int2half_rn(int x) { return __half((float)x); }
static inline __half __uint2half_rn(unsigned x) { return __half((float)x); }
static inline __half2 __float2half2_rn(float x) { return __half2(x, x); }
static inline __half2 __floats2half2_rn(float x, float y) { return __half2(x, y); }
static inline __half2 __float22half2_rn(float2 v) { return __half2(v.x, v.y); }
static inline float2 __half22float2(__half2 v) { return emu_floats(v); }
static inline __half2 __half2half2(__half x) { return __half2(x, x); }
static inline __half2 __halves2half2(__half x, __half y) { return __half2(x, y); }
static inline __half2 make_half2(__half x, __half y) { return __half2(x, y); }
static inline __half __low2half(__half2 v) { return v.x; }
static inline __half __high2half(__half2 v) { return v.y; }
static inline __half2 __low2half2(__half2 v) { return __half2(v.x, v.x); }
static inline __half2 __high2half2(__half2 v) { return __half2(v.y, v.y); }
static inline __half2 __lows2half2(__half2 a, __half2 b) { return __half2(a.x, b.x); }
static inline __half2 __highs2half2(__half2 a, __half2 b) { return __half2(a.y, b.y); }
static inline __half2 __lowhigh2highlow(__half2 v) { return __half2(v.y, v.x); }
static inline float __low2float(__half2 v) { return (float)v.x; }
static inline float __high2float(__half2 v) { return (float)v.y; }
static inline unsigned short __half_as_ushort(__half x) { return x.emu_bits; }
static inline short __half_as_short(__half x) { return (short)x.emu_bits; }
static inline __half __ushort_as_half(unsigned short bits) {
  __half x;
  x.emu_bits = bits;
  return x;
}
static inline __half __short_as_half(short bits) { return __ushort_as_half((unsigned short)bits); }

static inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
static inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
static inline float __bfloat162float(__nv_bfloat16 x) { return (float)x; }
static inline __nv_bfloat16 __int2bfloat16_rn(int x) { return __nv_bfloat16((float)x); }
static inline __nv_bfloat162 __float2bfloat162_rn(float x) { return __nv_bfloat162(x, x); }
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return __nv_bfloat162(x, y); }
static inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __nv_bfloat162(v.x, v.y); }
static inline float2 __bfloat1622float2(__nv_bfloat162 v) { return emu_floats(v); }
static inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return __nv_bfloat162(x, x); }
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return __nv_bfloat162(x, y); }
static inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return __nv_bfloat162(x, y); }
static inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
static inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
static inline float __low2float(__nv_bfloat162 v) { return (float)v.x; }
static inline float __high2float(__nv_bfloat162 v) { return (float)v.y; }
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.emu_bits; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  __nv_bfloat16 x;
  x.emu_bits = bits;
  return x;
}

/* cuda_fp8.h, as far as its storage types go. */
typedef unsigned char __nv_fp8_storage_t;
typedef unsigned short __nv_fp8x2_storage_t;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
static inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t, __nv_fp8_interpretation_t kind) {
  if (kind != __NV_E4M3) emu_fault("e5m2 is not modelled");
  return emu_to_e4m3(x);
}
static inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 v, __nv_saturation_t, __nv_fp8_interpretation_t kind) {
  if (kind != __NV_E4M3) emu_fault("e5m2 is not modelled");
  return emu_f32x2_to_e4m3x2(v.x, v.y);
}
