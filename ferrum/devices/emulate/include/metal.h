/* What a Metal source finds in <metal_stdlib> and its neighbours. Needs clang: vectors are its ext_vector_type.

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

/* --- barriers -------------------------------------------------------------------------------------------------------------- */

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
static inline mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((int)a | (int)b); }
static inline void emu_fence_if(mem_flags flags) {
  if ((int)flags & (int)mem_flags::mem_device) emu_fence();
}
static inline void threadgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  emu_fence_if(flags);
  emu_block_barrier("threadgroup_barrier", (int)flags & (int)mem_flags::mem_threadgroup, line);
}
static void emu_nothing_last(void **, uint32_t) {}
static void emu_simdgroup_last(void **, uint32_t) { emu_watch_warp(); }
static inline void simdgroup_barrier(mem_flags flags) {
  emu_fence_if(flags);
  const bool orders = (int)flags & (int)mem_flags::mem_threadgroup;
  emu_collective(~0u, "simdgroup_barrier", &flags, orders ? emu_simdgroup_last : emu_nothing_last);
}
enum memory_order { memory_order_relaxed, memory_order_acquire, memory_order_release, memory_order_acq_rel, memory_order_seq_cst };
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };
static inline void atomic_thread_fence(mem_flags flags, memory_order, thread_scope = thread_scope_device) { emu_fence_if(flags); }

/* --- SIMD groups ----------------------------------------------------------------------------------------------------------- */

template <class T> struct EmuShuffle {
  T value, result;
  int source;
};
template <class T> static void emu_shuffle_last(void **operands, uint32_t lanes) {
  for (uint32_t left = lanes; left; left &= left - 1) {
    EmuShuffle<T> *own = (EmuShuffle<T> *)operands[__builtin_ctz(left)];
    if (own->source < 0) own->result = own->value;
    else if (own->source < 32 && lanes >> own->source & 1) own->result = ((EmuShuffle<T> *)operands[own->source])->value;
    else emu_fault("a shuffle reads lane %d, which takes no part", own->source);
  }
}
template <class T> static inline T emu_shuffle(const char *what, uint mask, T value, int source) {
  EmuShuffle<T> s = {value, value, source};
  emu_collective(mask, what, &s, emu_shuffle_last<T>);
  return s.result;
}
static inline int emu_lane(void) { return emu.current->lane; }
static inline uint emu_quad(void) { return 15u << (emu.current->lane & ~3); }

template <class T> static inline T simd_shuffle(T v, ushort lane) { return emu_shuffle("simd_shuffle", ~0u, v, lane); }
template <class T> static inline T simd_shuffle_xor(T v, ushort mask) {
  return emu_shuffle("simd_shuffle_xor", ~0u, v, emu_lane() ^ mask);
}
template <class T> static inline T simd_shuffle_down(T v, ushort delta) {
  return emu_shuffle("simd_shuffle_down", ~0u, v, emu_lane() + delta < 32 ? emu_lane() + delta : -1);
}
template <class T> static inline T simd_shuffle_up(T v, ushort delta) {
  return emu_shuffle("simd_shuffle_up", ~0u, v, emu_lane() - delta);
}
template <class T> static inline T simd_shuffle_rotate_down(T v, ushort delta) {
  return emu_shuffle("simd_shuffle_rotate_down", ~0u, v, (emu_lane() + delta) & 31);
}
template <class T> static inline T simd_shuffle_rotate_up(T v, ushort delta) {
  return emu_shuffle("simd_shuffle_rotate_up", ~0u, v, (emu_lane() - delta) & 31);
}
template <class T> static inline T simd_broadcast(T v, ushort lane) { return emu_shuffle("simd_broadcast", ~0u, v, lane); }
template <class T> static inline T simd_broadcast_first(T v) {
  return emu_shuffle("simd_broadcast_first", ~0u, v, __builtin_ctz(emu.current->warp->alive));
}
template <class T> static inline T quad_shuffle_xor(T v, ushort mask) {
  return emu_shuffle("quad_shuffle_xor", emu_quad(), v, emu_lane() ^ (mask & 3));
}
template <class T> static inline T quad_broadcast(T v, ushort lane) {
  return emu_shuffle("quad_broadcast", emu_quad(), v, (emu_lane() & ~3) | (lane & 3));
}

/* Reductions in the order of lanes; the scans leave the running value in every lane. */
template <class T, class F> static void emu_reduce_last(void **operands, uint32_t lanes) {
  T sum = *(T *)operands[__builtin_ctz(lanes)];
  for (uint32_t left = lanes & (lanes - 1); left; left &= left - 1) sum = F::join(sum, *(T *)operands[__builtin_ctz(left)]);
  for (uint32_t left = lanes; left; left &= left - 1) *(T *)operands[__builtin_ctz(left)] = sum;
}
template <class T, class F> static void emu_scan_last(void **operands, uint32_t lanes) {
  T sum = *(T *)operands[__builtin_ctz(lanes)];
  for (uint32_t left = lanes & (lanes - 1); left; left &= left - 1) {
    T *own = (T *)operands[__builtin_ctz(left)];
    *own = sum = F::join(sum, *own);
  }
}
#define EMU_JOIN(name, expression)                                          \
  struct emu_##name {                                                       \
    template <class T> static inline T join(T a, T b) { return expression; } \
  };                                                                        \
  template <class T> static inline T simd_##name(T v) {                     \
    emu_collective(~0u, "simd_" #name, &v, emu_reduce_last<T, emu_##name>); \
    return v;                                                               \
  }                                                                         \
  template <class T> static inline T quad_##name(T v) {                     \
    emu_collective(emu_quad(), "quad_" #name, &v, emu_reduce_last<T, emu_##name>); \
    return v;                                                               \
  }
EMU_JOIN(sum, a + b)
EMU_JOIN(product, a *b)
EMU_JOIN(max, max(a, b))
EMU_JOIN(min, min(a, b))
EMU_JOIN(and, a &b)
EMU_JOIN(or, a | b)
EMU_JOIN(xor, a ^ b)
#undef EMU_JOIN
template <class T> static inline T simd_prefix_inclusive_sum(T v) {
  emu_collective(~0u, "simd_prefix_inclusive_sum", &v, emu_scan_last<T, emu_sum>);
  return v;
}
template <class T> static inline T simd_prefix_exclusive_sum(T v) {
  const T sum = simd_shuffle_up(simd_prefix_inclusive_sum(v), 1);
  return emu_lane() ? sum : (T)0;
}
static inline bool simd_any(bool p) { return simd_max((int)p) != 0; }
static inline bool simd_all(bool p) { return simd_min((int)p) != 0; }
struct simd_vote {
  typedef ulong vote_t;
  vote_t votes;
  explicit operator vote_t() const { return votes; }
  bool any() const { return votes != 0; }
  bool all() const { return votes == emu.current->warp->alive; }
};
static inline simd_vote simd_ballot(bool p) { return simd_vote{simd_or(p ? 1ul << emu_lane() : 0ul)}; }
static inline simd_vote simd_active_threads_mask(void) { return simd_vote{emu.current->warp->alive}; }
static inline bool simd_is_first(void) { return emu_lane() == __builtin_ctz(emu.current->warp->alive); }

/* --- matrices of a SIMD group ------------------------------------------------------------------------------------------------

   Two elements a lane, side by side in a row: row 4 * (lane / 16) + lane / 2 % 4, column 4 * (lane / 8 % 2) + 2 * (lane % 2).
   The language leaves the places open; this is how they are known to lie, and no kernel may depend on it. */

static inline int emu_matrix_row(int lane) { return lane / 16 * 4 + lane / 2 % 4; }
static inline int emu_matrix_column(int lane) { return lane / 8 % 2 * 4 + lane % 2 * 2; }

template <class T, int R, int C> struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "matrices of SIMD groups are 8 x 8");
  vec<T, 2> elements;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    const int row = emu_matrix_row(emu_lane()), column = emu_matrix_column(emu_lane());
    elements[0] = row == column ? diagonal : (T)0;
    elements[1] = row == column + 1 ? diagonal : (T)0;
  }
  thread vec<T, 2> &thread_elements() { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int R, int C> static inline simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, R, C> m;
  m.elements = vec<T, 2>(value);
  return m;
}
template <class T, class P>
static inline void simdgroup_load(thread simdgroup_matrix<T, 8, 8> &m, P p, ulong stride = 8, ulong2 origin = 0,
                                  bool transpose = false) {
  const ulong row = (ulong)emu_matrix_row(emu_lane()), column = (ulong)emu_matrix_column(emu_lane());
  for (ulong i = 0; i < 2; ++i)
    m.elements[i] = transpose ? p[(column + i + origin.y) * stride + row + origin.x]
                              : p[(row + origin.y) * stride + column + i + origin.x];
}
template <class T, class P>
static inline void simdgroup_store(simdgroup_matrix<T, 8, 8> m, P p, ulong stride = 8, ulong2 origin = 0, bool transpose = false) {
  const ulong row = (ulong)emu_matrix_row(emu_lane()), column = (ulong)emu_matrix_column(emu_lane());
  for (ulong i = 0; i < 2; ++i)
    if (transpose) p[(column + i + origin.y) * stride + row + origin.x] = m.elements[i];
    else p[(row + origin.y) * stride + column + i + origin.x] = m.elements[i];
}

struct EmuProduct {
  float2 a, b, c;
};
static void emu_product_last(void **operands, uint32_t lanes) {
  typedef float Row __attribute__((vector_size(32)));
  if (lanes != ~0u) emu_fault("a product of matrices without all lanes of the SIMD group");
  EmuProduct *const *all = (EmuProduct *const *)operands;
  alignas(32) float a[8][8];
  Row b[8], c[8];
  for (int lane = 0; lane < 32; ++lane) {
    const int row = emu_matrix_row(lane), column = emu_matrix_column(lane);
    memcpy(&a[row][column], &all[lane]->a, 8);
    memcpy((float *)&b[row] + column, &all[lane]->b, 8);
    memcpy((float *)&c[row] + column, &all[lane]->c, 8);
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < 8; ++i)
    for (int k = 0; k < 8; ++k) c[i] += a[i][k] * b[k];
  for (int lane = 0; lane < 32; ++lane)
    memcpy(&all[lane]->c, (float *)&c[emu_matrix_row(lane)] + emu_matrix_column(lane), 8);
}
static inline float2 emu_floats(float2 v) { return v; }
static inline float2 emu_floats(half2 v) { return __builtin_convertvector(v, float2); }
static inline float2 emu_floats(bfloat2 v) { return __builtin_convertvector(v, float2); }
template <class D, class A, class B, class C>
static inline void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8> &d, simdgroup_matrix<A, 8, 8> a,
                                                 simdgroup_matrix<B, 8, 8> b, simdgroup_matrix<C, 8, 8> c) {
  EmuProduct p = {emu_floats(a.elements), emu_floats(b.elements), emu_floats(c.elements)};
  emu_collective(~0u, "simdgroup_multiply_accumulate", &p, emu_product_last);
  d.elements = __builtin_convertvector(p.c, decltype(d.elements));
}
template <class D, class A, class B>
static inline void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8> &d, simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float, 8, 8>(0.0f));
}

/* --- atomics --------------------------------------------------------------------------------------------------------------- */

#ifdef EMU_CHECK /* a type of its own without a constructor, which could not be called in another address space */
template <class T> using atomic = T __attribute__((ext_vector_type(1)));
#else
template <class T> struct atomic {
  T value;
};
#endif
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<ulong> atomic_ulong;

/* The address of an atomic's value, whatever its address space. */
template <class T, class P> static inline T *emu_value(P p) { return (T *)(uintptr_t)p; }

#define EMU_ATOMIC(name, expression)                                              \
  template <class T, class V> static inline EMU_UNWATCHED T emu_##name(T *p, V given) { \
    const T old = *p, value = (T)given;                                           \
    *p = (T)(expression);                                                         \
    emu_seen(p, sizeof(T));                                                       \
    return old;                                                                   \
  }                                                                               \
  template <class T, class V> static inline T atomic_##name##_explicit(device atomic<T> *p, V value, memory_order) { \
    return emu_##name(emu_value<T>(p), value);                                    \
  }                                                                               \
  EMU_ATOMIC_LOCAL(name)
#ifdef EMU_CHECK
#define EMU_ATOMIC_LOCAL(name)                                                    \
  template <class T, class V> static inline T atomic_##name##_explicit(threadgroup atomic<T> *p, V value, memory_order) { \
    return emu_##name(emu_value<T>(p), value);                                    \
  }
#else
#define EMU_ATOMIC_LOCAL(name)
#endif
EMU_ATOMIC(fetch_add, old + value)
EMU_ATOMIC(fetch_sub, old - value)
EMU_ATOMIC(fetch_max, old > value ? old : value)
EMU_ATOMIC(fetch_min, old < value ? old : value)
EMU_ATOMIC(fetch_and, old & value)
EMU_ATOMIC(fetch_or, old | value)
EMU_ATOMIC(fetch_xor, old ^ value)
EMU_ATOMIC(exchange, value)
EMU_ATOMIC(store, value)
#undef EMU_ATOMIC
#undef EMU_ATOMIC_LOCAL
template <class T> static inline T atomic_load_explicit(const device atomic<T> *p, memory_order) { return *emu_value<T>(p); }
#ifdef EMU_CHECK
template <class T> static inline T atomic_load_explicit(const threadgroup atomic<T> *p, memory_order) { return *emu_value<T>(p); }
#endif
template <class T, class V>
static inline bool atomic_compare_exchange_weak_explicit(device atomic<T> *p, thread T *expected, V value, memory_order, memory_order) {
  T *at = emu_value<T>(p);
  const bool same = *at == *expected;
  if (same) *at = (T)value;
  else *expected = *at;
  emu_seen(at, sizeof(T));
  return same;
}

}  // namespace metal

template <class T, class S> static inline T as_type(S from) {
  static_assert(sizeof(T) == sizeof(S), "as_type between different sizes");
  T to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

/* --- the entry --------------------------------------------------------------------------------------------------------------- */

/* A built-in position, as whatever a parameter wants of it. */
struct EmuPosition {
  unsigned x, y, z;
  operator uint() const { return x; }
  operator ushort() const { return (ushort)x; }
  operator uint2() const { return uint2{x, y}; }
  operator ushort2() const { return ushort2{(ushort)x, (ushort)y}; }
  operator uint3() const { return uint3{x, y, z}; }
  operator ushort3() const { return ushort3{(ushort)x, (ushort)y, (ushort)z}; }
};
static inline EmuPosition emu_position(EmuDim d) { return EmuPosition{d.x, d.y, d.z}; }
static inline EmuPosition emu_position_in_grid(void) {
  const EmuDim b = emu.block_index, n = emu.block, t = emu.current->index;
  return EmuPosition{b.x * n.x + t.x, b.y * n.y + t.y, b.z * n.z + t.z};
}

/* Constructors of vectors are macros with parameters: without parentheses the names stay types. */
#define EMU_CONSTRUCT(T, ...) ::metal::emu_vector<T>(__VA_ARGS__)
#define char2(...) EMU_CONSTRUCT(char2, __VA_ARGS__)
#define char4(...) EMU_CONSTRUCT(char4, __VA_ARGS__)
#define uchar2(...) EMU_CONSTRUCT(uchar2, __VA_ARGS__)
#define uchar4(...) EMU_CONSTRUCT(uchar4, __VA_ARGS__)
#define short2(...) EMU_CONSTRUCT(short2, __VA_ARGS__)
#define short4(...) EMU_CONSTRUCT(short4, __VA_ARGS__)
#define ushort2(...) EMU_CONSTRUCT(ushort2, __VA_ARGS__)
#define ushort3(...) EMU_CONSTRUCT(ushort3, __VA_ARGS__)
#define ushort4(...) EMU_CONSTRUCT(ushort4, __VA_ARGS__)
#define int2(...) EMU_CONSTRUCT(int2, __VA_ARGS__)
#define int3(...) EMU_CONSTRUCT(int3, __VA_ARGS__)
#define int4(...) EMU_CONSTRUCT(int4, __VA_ARGS__)
#define uint2(...) EMU_CONSTRUCT(uint2, __VA_ARGS__)
#define uint3(...) EMU_CONSTRUCT(uint3, __VA_ARGS__)
#define uint4(...) EMU_CONSTRUCT(uint4, __VA_ARGS__)
#define ulong2(...) EMU_CONSTRUCT(ulong2, __VA_ARGS__)
#define half2(...) EMU_CONSTRUCT(half2, __VA_ARGS__)
#define half3(...) EMU_CONSTRUCT(half3, __VA_ARGS__)
#define half4(...) EMU_CONSTRUCT(half4, __VA_ARGS__)
#define bfloat2(...) EMU_CONSTRUCT(bfloat2, __VA_ARGS__)
#define bfloat3(...) EMU_CONSTRUCT(bfloat3, __VA_ARGS__)
#define bfloat4(...) EMU_CONSTRUCT(bfloat4, __VA_ARGS__)
#define float2(...) EMU_CONSTRUCT(float2, __VA_ARGS__)
#define float3(...) EMU_CONSTRUCT(float3, __VA_ARGS__)
#define float4(...) EMU_CONSTRUCT(float4, __VA_ARGS__)
#define bool4(...) EMU_CONSTRUCT(bool4, __VA_ARGS__)
