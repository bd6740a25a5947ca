/* What a CUDA source finds without an include: keywords, built-in variables, vector types, collectives, atomics, intrinsics. */
#pragma once
#include "ferrum_emulate.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ EMU_SHARED(0) /* in macros only: elsewhere the number of the kernel is filled in */
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __CUDA_ARCH__ 800

#define threadIdx (emu.current->index)
#define blockIdx (emu.block_index)
#define blockDim (emu.block)
#define gridDim (emu.grid)
#define warpSize 32

/* --- vector types -------------------------------------------------------------------------------------------------------- */

#define EMU_VECTORS(T, name, a2, a4)                                                                    \
  struct name##1 { T x; };                                                                              \
  struct __align__(a2) name##2 { T x, y; };                                                             \
  struct name##3 { T x, y, z; };                                                                        \
  struct __align__(a4) name##4 { T x, y, z, w; };                                                       \
  static inline name##1 make_##name##1(T x) { return name##1{x}; }                                      \
  static inline name##2 make_##name##2(T x, T y) { return name##2{x, y}; }                              \
  static inline name##3 make_##name##3(T x, T y, T z) { return name##3{x, y, z}; }                      \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return name##4{x, y, z, w}; }
EMU_VECTORS(signed char, char, 2, 4)
EMU_VECTORS(unsigned char, uchar, 2, 4)
EMU_VECTORS(short, short, 4, 8)
EMU_VECTORS(unsigned short, ushort, 4, 8)
EMU_VECTORS(int, int, 8, 16)
EMU_VECTORS(unsigned, uint, 8, 16)
EMU_VECTORS(long long, longlong, 16, 16)
EMU_VECTORS(unsigned long long, ulonglong, 16, 16)
EMU_VECTORS(float, float, 8, 16)
EMU_VECTORS(double, double, 16, 16)
#undef EMU_VECTORS

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

/* --- barriers, fences ---------------------------------------------------------------------------------------------------- */

static inline void __syncthreads(int line = __builtin_LINE()) { emu_block_barrier("__syncthreads", 0, line); }
static inline int __syncthreads_or(int p, int line = __builtin_LINE()) {
  return emu_block_barrier("__syncthreads_or", p, line)->last_any;
}
static inline int __syncthreads_and(int p, int line = __builtin_LINE()) {
  return emu_block_barrier("__syncthreads_and", p, line)->last_all;
}
static inline int __syncthreads_count(int p, int line = __builtin_LINE()) {
  return emu_block_barrier("__syncthreads_count", p, line)->last_count;
}
static inline void __threadfence(void) { emu_fence(); }
static inline void __threadfence_block(void) {}
static inline void __threadfence_system(void) { emu_fence(); }
static inline unsigned __activemask(void) { return emu.current->warp->alive; }

static void emu_syncwarp_last(void **, uint32_t) { emu_watch_warp(); }
static inline void __syncwarp(unsigned mask = ~0u) { emu_collective(mask, "__syncwarp", &mask, emu_syncwarp_last); }

/* --- warp collectives ------------------------------------------------------------------------------------------------------ */

template <class T> struct EmuShuffle {
  T value, result;
  int source; /* lane, or -1 for the own value */
};
template <class T> static void emu_shuffle_last(void **operands, uint32_t lanes) {
  for (uint32_t left = lanes; left; left &= left - 1) {
    EmuShuffle<T> *own = (EmuShuffle<T> *)operands[__builtin_ctz(left)];
    const int source = own->source;
    if (source < 0) own->result = own->value;
    else if (lanes >> source & 1) own->result = ((EmuShuffle<T> *)operands[source])->value;
    else emu_fault("a shuffle reads lane %d, which takes no part", source);
  }
}
template <class T> static inline T emu_shuffle(unsigned mask, T value, int source, const char *what) {
  EmuShuffle<T> s = {value, value, source};
  emu_collective(mask, what, &s, emu_shuffle_last<T>);
  return s.result;
}
template <class T> static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = emu.current->lane;
  return emu_shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), "__shfl_sync");
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int lane = emu.current->lane, source = lane ^ lanes;
  return emu_shuffle(mask, value, source / width > lane / width ? -1 : source, "__shfl_xor_sync");
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  const int lane = emu.current->lane, source = lane + (int)lanes;
  return emu_shuffle(mask, value, source / width > lane / width ? -1 : source, "__shfl_down_sync");
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  const int lane = emu.current->lane, source = lane - (int)lanes;
  return emu_shuffle(mask, value, source < (lane & ~(width - 1)) ? -1 : source, "__shfl_up_sync");
}

template <class T> struct EmuVote {
  T value;
  unsigned result, mask;
};
enum { EMU_BALLOT, EMU_ANY, EMU_ALL, EMU_MATCH };
template <class T, int KIND> static void emu_vote_last(void **operands, uint32_t lanes) {
  unsigned set = 0;
  for (uint32_t left = lanes; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if (((EmuVote<T> *)operands[lane])->value) set |= 1u << lane;
  }
  for (uint32_t left = lanes; left; left &= left - 1) {
    EmuVote<T> *own = (EmuVote<T> *)operands[__builtin_ctz(left)];
    if (KIND == EMU_BALLOT) own->result = set;
    if (KIND == EMU_ANY) own->result = set != 0;
    if (KIND == EMU_ALL) own->result = set == lanes;
    if (KIND == EMU_MATCH) {
      own->result = 0;
      for (uint32_t rest = lanes; rest; rest &= rest - 1)
        if (((EmuVote<T> *)operands[__builtin_ctz(rest)])->value == own->value) own->result |= rest & -rest;
    }
  }
}
template <class T, int KIND> static inline unsigned emu_vote(unsigned mask, T value, const char *what) {
  EmuVote<T> v = {value, 0, mask};
  emu_collective(mask, what, &v, emu_vote_last<T, KIND>);
  return v.result;
}
static inline unsigned __ballot_sync(unsigned mask, int p) { return emu_vote<int, EMU_BALLOT>(mask, p, "__ballot_sync"); }
static inline int __any_sync(unsigned mask, int p) { return (int)emu_vote<int, EMU_ANY>(mask, p, "__any_sync"); }
static inline int __all_sync(unsigned mask, int p) { return (int)emu_vote<int, EMU_ALL>(mask, p, "__all_sync"); }
template <class T> static inline unsigned __match_any_sync(unsigned mask, T value) {
  return emu_vote<T, EMU_MATCH>(mask, value, "__match_any_sync");
}
template <class T> static inline unsigned __match_all_sync(unsigned mask, T value, int *all) {
  const unsigned same = emu_vote<T, EMU_MATCH>(mask, value, "__match_all_sync");
  *all = same == (mask & emu.current->warp->alive);
  return *all ? same : 0;
}

#define EMU_REDUCE(name, T, expression)                                                                   \
  static void emu_last_##name##_##T(void **operands, uint32_t lanes) {                                   \
    T a = 0;                                                                                             \
    bool first = true;                                                                                   \
    for (uint32_t left = lanes; left; left &= left - 1, first = false) {                                 \
      const T b = *(T *)operands[__builtin_ctz(left)];                                                   \
      a = first ? b : (T)(expression);                                                                   \
    }                                                                                                    \
    for (uint32_t left = lanes; left; left &= left - 1) *(T *)operands[__builtin_ctz(left)] = a;         \
  }                                                                                                      \
  static inline T name(unsigned mask, T value) {                                                         \
    emu_collective(mask, #name, &value, emu_last_##name##_##T);                                          \
    return value;                                                                                        \
  }
EMU_REDUCE(__reduce_add_sync, unsigned, a + b)
EMU_REDUCE(__reduce_add_sync, int, (int)((unsigned)a + (unsigned)b))
EMU_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
EMU_REDUCE(__reduce_min_sync, int, a < b ? a : b)
EMU_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
EMU_REDUCE(__reduce_max_sync, int, a > b ? a : b)
EMU_REDUCE(__reduce_and_sync, unsigned, a & b)
EMU_REDUCE(__reduce_or_sync, unsigned, a | b)
EMU_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef EMU_REDUCE

/* --- atomics --------------------------------------------------------------------------------------------------------------- */

#define EMU_ATOMIC(name, T, expression)                 \
  static inline EMU_UNWATCHED T name(T *p, T value) {   \
    emu_check_aligned(p);                               \
    const T old = *p;                                   \
    *p = (T)(expression);                               \
    emu_seen(p, sizeof(T));                             \
    return old;                                         \
  }
#define EMU_ATOMIC_INTEGERS(name, expression)           \
  EMU_ATOMIC(name, int, expression)                     \
  EMU_ATOMIC(name, unsigned, expression)                \
  EMU_ATOMIC(name, unsigned long long, expression)
EMU_ATOMIC_INTEGERS(atomicAdd, old + value)
EMU_ATOMIC(atomicAdd, float, old + value)
EMU_ATOMIC(atomicAdd, double, old + value)
EMU_ATOMIC(atomicSub, int, old - value)
EMU_ATOMIC(atomicSub, unsigned, old - value)
EMU_ATOMIC_INTEGERS(atomicMax, old > value ? old : value)
EMU_ATOMIC_INTEGERS(atomicMin, old < value ? old : value)
EMU_ATOMIC_INTEGERS(atomicAnd, old & value)
EMU_ATOMIC_INTEGERS(atomicOr, old | value)
EMU_ATOMIC_INTEGERS(atomicXor, old ^ value)
EMU_ATOMIC_INTEGERS(atomicExch, value)
EMU_ATOMIC(atomicExch, float, value)
EMU_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
EMU_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
#undef EMU_ATOMIC_INTEGERS
#undef EMU_ATOMIC
template <class T> static inline EMU_UNWATCHED T atomicCAS(T *p, T compare, T value) {
  emu_check_aligned(p);
  const T old = *p;
  if (old == compare) *p = value;
  emu_seen(p, sizeof(T));
  return old;
}

/* --- single accesses --------------------------------------------------------------------------------------------------------- */

template <class T> static inline T __ldg(const T *p) { return emu_load(p); }
template <class T> static inline T __ldca(const T *p) { return emu_load(p); }
template <class T> static inline T __ldcg(const T *p) { return emu_load(p); }
template <class T> static inline T __ldcs(const T *p) { return emu_load(p); }
template <class T> static inline T __ldlu(const T *p) { return emu_load(p); }
template <class T> static inline T __ldcv(const T *p) { return emu_load(p); }
template <class T> static inline void __stwb(T *p, T value) { emu_store(p, value); }
template <class T> static inline void __stcg(T *p, T value) { emu_store(p, value); }
template <class T> static inline void __stcs(T *p, T value) { emu_store(p, value); }
template <class T> static inline void __stwt(T *p, T value) { emu_store(p, value); }
static inline size_t __cvta_generic_to_shared(const void *p) { return (size_t)p; }
static inline size_t __cvta_generic_to_global(const void *p) { return (size_t)p; }

/* --- integers ------------------------------------------------------------------------------------------------------------------ */

#define EMU_MIN_MAX(T, A, B)                                                      \
  static inline T min(A a, B b) { return (T)a < (T)b ? (T)a : (T)b; }             \
  static inline T max(A a, B b) { return (T)a > (T)b ? (T)a : (T)b; }
EMU_MIN_MAX(int, int, int)
EMU_MIN_MAX(unsigned, unsigned, unsigned)
EMU_MIN_MAX(unsigned, int, unsigned)
EMU_MIN_MAX(unsigned, unsigned, int)
EMU_MIN_MAX(long, long, long)
EMU_MIN_MAX(unsigned long, unsigned long, unsigned long)
EMU_MIN_MAX(long long, long long, long long)
EMU_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
#undef EMU_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
  return r;
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) { return emu_prmt(a, b, selector & 0x7777); }
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)((((unsigned long long)high << 32 | low) << (shift & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)(((unsigned long long)high << 32 | low) >> (shift & 31));
}
#define EMU_DP4A(A, B, R, EA, EB)                                                                          \
  static inline R __dp4a(A a, B b, R c) {                                                                  \
    for (int i = 0; i < 4; ++i) c += (R)((EA)((unsigned)a >> 8 * i)) * (R)((EB)((unsigned)b >> 8 * i));    \
    return c;                                                                                              \
  }
EMU_DP4A(int, int, int, int8_t, int8_t)
EMU_DP4A(unsigned, unsigned, unsigned, uint8_t, uint8_t)
EMU_DP4A(unsigned, int, int, uint8_t, int8_t)
EMU_DP4A(int, unsigned, int, int8_t, uint8_t)
#undef EMU_DP4A

/* --- floats ---------------------------------------------------------------------------------------------------------------------- */

static inline float __int_as_float(int x) { return emu_float_of((uint32_t)x); }
static inline float __uint_as_float(unsigned x) { return emu_float_of(x); }
static inline int __float_as_int(float x) { return (int)emu_bits_of(x); }
static inline unsigned __float_as_uint(float x) { return emu_bits_of(x); }
static inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
#define rsqrtf __frsqrt_rn /* some C libraries have one of this name */
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
/* never contracted into a multiply-add, which the empty assembly sees to */
static inline float emu_apart(float x) {
#if defined(__x86_64__)
  __asm__("" : "+x"(x));
#else
  __asm__("" : "+w"(x));
#endif
  return x;
}
static inline float __fmul_rn(float a, float b) { return emu_apart(a * b); }
static inline float __fadd_rn(float a, float b) { return emu_apart(emu_apart(a) + emu_apart(b)); }
static inline float __fsub_rn(float a, float b) { return emu_apart(emu_apart(a) - emu_apart(b)); }
/* macros, because the C library has functions of these names */
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __powf(x, y) powf(x, y)
#define __sincosf(x, s, c) ((void)(*(s) = sinf(x), *(c) = cosf(x)))
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
static inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }

/* Conversions to integers saturate, and NaN becomes 0. */
static inline int emu_to_int(float x) { return x != x ? 0 : x >= 2147483648.0f ? INT32_MAX : x <= -2147483648.0f ? INT32_MIN : (int)x; }
static inline unsigned emu_to_unsigned(float x) { return !(x > 0.0f) ? 0 : x >= 4294967296.0f ? UINT32_MAX : (unsigned)x; }
static inline int __float2int_rn(float x) { return emu_to_int(rintf(x)); }
static inline int __float2int_rz(float x) { return emu_to_int(truncf(x)); }
static inline int __float2int_rd(float x) { return emu_to_int(floorf(x)); }
static inline int __float2int_ru(float x) { return emu_to_int(ceilf(x)); }
static inline unsigned __float2uint_rn(float x) { return emu_to_unsigned(rintf(x)); }
static inline unsigned __float2uint_rz(float x) { return emu_to_unsigned(truncf(x)); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }

#include "cuda_half.h"
