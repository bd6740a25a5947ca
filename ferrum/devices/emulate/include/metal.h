/* What a Metal source finds in <metal_stdlib> and its neighbours: values, barriers, SIMD groups and their matrices, atomics. */
#pragma once
#include "metal_values.h"

namespace metal {

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
