/* Types of Metal's language, address spaces among them, and its functions of values. Needs clang: vectors are its ext_vector_type.

   With EMU_CHECK the address spaces are real, and a source that mixes them up does not compile; without it they are nothing. */
#pragma once
#include "engine.h"
#include "numbers.h"
#include "words.h"

#ifdef EMU_CHECK
#define device __attribute__((address_space(1)))
/* an address space of its own: a pointer that forgets that its memory is coherent is an error */
#define coherent_device __attribute__((address_space(4)))
#define constant const __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define EMU_THREADGROUP(n) static __attribute__((address_space(3)))
#else
#define device
#define coherent_device
#define constant const
#define threadgroup
#define EMU_THREADGROUP(n) EMU_SHARED(n)
#endif
#define thread
#define kernel

/* --- types --------------------------------------------------------------------------------------------------------------- */

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
typedef __bf16 bfloat;

/* What clang calls to round to bfloat16; not every C runtime has it. The result is the low half of the register, which a
   float names as well: a function of type __bf16 would round its own result by calling itself. */
extern "C" __attribute__((weak, visibility("hidden"))) float __truncsfbf2(float x) { return emu_float_of(emu_to_bf16(x)); }
extern "C" __attribute__((weak, visibility("hidden"))) float __truncdfbf2(double x) {
  return emu_float_of(emu_to_bf16((float)x));
}

#define EMU_VECTORS(T)                                                                                        \
  typedef T T##2 __attribute__((ext_vector_type(2)));                                                         \
  typedef T T##3 __attribute__((ext_vector_type(3)));                                                         \
  typedef T T##4 __attribute__((ext_vector_type(4)));                                                         \
  typedef T packed_##T##2 __attribute__((ext_vector_type(2), aligned(sizeof(T))));                            \
  typedef T packed_##T##4 __attribute__((ext_vector_type(4), aligned(sizeof(T))));
EMU_VECTORS(char)
EMU_VECTORS(uchar)
EMU_VECTORS(short)
EMU_VECTORS(ushort)
EMU_VECTORS(int)
EMU_VECTORS(uint)
EMU_VECTORS(long)
EMU_VECTORS(ulong)
EMU_VECTORS(half)
EMU_VECTORS(bfloat)
EMU_VECTORS(float)
#undef EMU_VECTORS
typedef bool bool2 __attribute__((ext_vector_type(2)));
typedef bool bool3 __attribute__((ext_vector_type(3)));
typedef bool bool4 __attribute__((ext_vector_type(4)));

/* 1.0h and 1.0bf arrive here with an underscore: suffixes without one are the compiler's own. */
constexpr half operator""_h(long double x) { return (half)x; }
constexpr half operator""_h(unsigned long long x) { return (half)x; }
constexpr bfloat operator""_bf(long double x) { return (bfloat)(float)x; }
constexpr bfloat operator""_bf(unsigned long long x) { return (bfloat)(float)x; }

#undef isnan
#undef isinf
#undef isfinite
#undef signbit
#undef MAXFLOAT
#define MAXFLOAT 3.402823466e+38f
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define HALF_MAX 6.5504e+4_h
#define M_PI_F 3.14159265358979323846f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f

namespace metal {

template <class T, int N> struct emu_vec {
  typedef T type __attribute__((ext_vector_type(N)));
};
template <class T, int N> using vec = typename emu_vec<T, N>::type;

/* The element and the number of elements of a scalar or vector type, whatever its address space. */
template <class T> struct emu_plain {
  typedef T type;
};
template <class T> struct emu_shape {
  enum { size = 1 };
  typedef T element;
};
template <class T, int N> struct emu_shape<T __attribute__((ext_vector_type(N)))> {
  enum { size = N };
  typedef T element;
};

template <class V, class A> static inline void emu_put(V &v, int &at, A a) {
  typedef typename emu_shape<V>::element T;
  if constexpr (emu_shape<A>::size == 1) {
    v[at++] = (T)a;
  } else {
    for (int i = 0; i < emu_shape<A>::size; ++i) v[at++] = (T)a[i];
  }
}
template <class V, class A> static inline V emu_vector(A a) {
  if constexpr (emu_shape<A>::size == 1) {
    return (V)(typename emu_shape<V>::element)a;
  } else {
    static_assert((int)emu_shape<A>::size == (int)emu_shape<V>::size, "vectors of different sizes");
    return __builtin_convertvector(a, V);
  }
}
template <class V, class A, class B, class... More> static inline V emu_vector(A a, B b, More... more) {
  V v = {};
  int at = 0;
  emu_put(v, at, a);
  emu_put(v, at, b);
  (emu_put(v, at, more), ...);
  return v;
}

/* --- mathematics ----------------------------------------------------------------------------------------------------------- */

#define EMU_UNARY(name, builtin) \
  template <class T> static inline T name(T x) { return builtin(x); }
#define EMU_MATHEMATICS                             \
  EMU_UNARY(exp, __builtin_elementwise_exp)         \
  EMU_UNARY(exp2, __builtin_elementwise_exp2)       \
  EMU_UNARY(exp10, __builtin_elementwise_exp10)     \
  EMU_UNARY(log, __builtin_elementwise_log)         \
  EMU_UNARY(log2, __builtin_elementwise_log2)       \
  EMU_UNARY(log10, __builtin_elementwise_log10)     \
  EMU_UNARY(sqrt, __builtin_elementwise_sqrt)       \
  EMU_UNARY(sin, __builtin_elementwise_sin)         \
  EMU_UNARY(cos, __builtin_elementwise_cos)         \
  EMU_UNARY(tan, __builtin_elementwise_tan)         \
  EMU_UNARY(tanh, __builtin_elementwise_tanh)       \
  EMU_UNARY(sinh, __builtin_elementwise_sinh)       \
  EMU_UNARY(cosh, __builtin_elementwise_cosh)       \
  EMU_UNARY(fabs, __builtin_elementwise_abs)        \
  EMU_UNARY(floor, __builtin_elementwise_floor)     \
  EMU_UNARY(ceil, __builtin_elementwise_ceil)       \
  EMU_UNARY(trunc, __builtin_elementwise_trunc)     \
  EMU_UNARY(rint, __builtin_elementwise_rint)       \
  EMU_UNARY(round, __builtin_elementwise_round)     \
  template <class T> static inline T rsqrt(T x) { return (T)1 / __builtin_elementwise_sqrt(x); } \
  template <class T> static inline T pow(T x, T y) { return __builtin_elementwise_pow(x, y); }   \
  template <class T> static inline T powr(T x, T y) { return __builtin_elementwise_pow(x, y); }  \
  template <class T> static inline T fmod(T x, T y) { return x - y * __builtin_elementwise_trunc(x / y); }                   \
  template <class T> static inline T divide(T x, T y) { return x / y; }                          \
  template <class T> static inline T fma(T a, T b, T c) { return __builtin_elementwise_fma(a, b, c); } \
  template <class T> static inline T fmax(T a, T b) { return __builtin_elementwise_max(a, b); }  \
  template <class T> static inline T fmin(T a, T b) { return __builtin_elementwise_min(a, b); }
EMU_MATHEMATICS
namespace fast {
EMU_MATHEMATICS
}
namespace precise {
EMU_MATHEMATICS
}
#undef EMU_MATHEMATICS
#undef EMU_UNARY

template <class T> static inline T abs(T x) { return __builtin_elementwise_abs(x); }
template <class T> static inline T max(T a, T b) { return __builtin_elementwise_max(a, b); }
template <class T> static inline T min(T a, T b) { return __builtin_elementwise_min(a, b); }
template <class T> static inline T max3(T a, T b, T c) { return max(max(a, b), c); }
template <class T> static inline T min3(T a, T b, T c) { return min(min(a, b), c); }
template <class T> static inline T clamp(T x, T low, T high) { return min(max(x, low), high); }
template <class T> static inline T saturate(T x) { return clamp(x, (T)0, (T)1); }
template <class T> static inline T mix(T a, T b, T t) { return a + (b - a) * t; }
template <class T> static inline T sign(T x) { return (T)((x > (T)0) - (x < (T)0)); }
template <class T> static inline T select(T a, T b, bool c) { return c ? b : a; }
template <class T, class C> static inline T select(T a, T b, C c) {
  T r;
  for (int i = 0; i < emu_shape<T>::size; ++i) r[i] = c[i] ? b[i] : a[i];
  return r;
}
template <class T> static inline typename emu_shape<T>::element dot(T a, T b) {
  typename emu_shape<T>::element sum = 0;
  for (int i = 0; i < emu_shape<T>::size; ++i) sum += a[i] * b[i];
  return sum;
}
template <class T> static inline bool isnan(T x) { return x != x; }
template <class T> static inline bool isinf(T x) { return __builtin_isinf((float)x); }
template <class T> static inline bool isfinite(T x) { return __builtin_isfinite((float)x); }
template <class C> static inline bool any(C c) {
  bool r = false;
  for (int i = 0; i < emu_shape<C>::size; ++i) r |= c[i] != 0;
  return r;
}
template <class C> static inline bool all(C c) {
  bool r = true;
  for (int i = 0; i < emu_shape<C>::size; ++i) r &= c[i] != 0;
  return r;
}
template <class T> static inline T popcount(T x) { return __builtin_elementwise_popcount(x); }
static inline uint clz(uint x) { return x ? (uint)__builtin_clz(x) : 32; }
static inline uint ctz(uint x) { return x ? (uint)__builtin_ctz(x) : 32; }
static inline uint reverse_bits(uint x) { return __builtin_bitreverse32(x); }
static inline uint extract_bits(uint x, uint offset, uint bits) {
  return bits == 32 ? x : x >> offset & ((1u << bits) - 1);
}
static inline int extract_bits(int x, uint offset, uint bits) {
  return bits ? (int)((uint)x << (32 - offset - bits)) >> (32 - bits) : 0;
}
static inline uint insert_bits(uint base, uint insert, uint offset, uint bits) {
  const uint mask = (bits == 32 ? ~0u : (1u << bits) - 1) << offset;
  return (base & ~mask) | (insert << offset & mask);
}
static inline uint rotate(uint x, uint n) { return n % 32 ? x << n % 32 | x >> (32 - n % 32) : x; }
static inline uint mulhi(uint a, uint b) { return (uint)((ulong)a * b >> 32); }
static inline int mulhi(int a, int b) { return (int)((long)a * b >> 32); }

}  // namespace metal
