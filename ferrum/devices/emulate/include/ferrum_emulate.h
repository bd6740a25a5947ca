/* What an emulated kernel may call: the twins of inline PTX. templates/cuda/lib/ptx.cuh calls these where
   FERRUM_EMULATE is defined, and inline assembly where it is not. Everything else that CUDA has without assembly
   (threadIdx, __syncthreads, __shfl_xor_sync, atomicAdd, __dp4a, __hfma2, __ldg ...) has its own name in cuda.h, which is
   included before the first line of a CUDA source; this header comes with it.

   Words: a lane is a thread's place in its warp. A collective is a call that all lanes of a mask must reach, with the same
   operation; the last lane that arrives does the work for all. A lane that exited counts as arrived. Lanes that wait at
   different operations, a mask without the caller, and a barrier that can never be completed end the launch with a fault
   that names kernel, block and threads.

   Registers of fragments are 32-bit words with the element of the lower index in the low bits, as in the PTX manual
   (section "Matrix Fragments for mma.sync"): group = lane / 4, member = lane % 4. */
#pragma once
#include "engine.h"

/* --- asynchronous copies (cp.async) ------------------------------------------------------------------------------------
   Copies of a thread belong to its open group; commit closes it; wait(n) lands all but the newest n closed groups of this
   thread. Launched with copies="eager" they land at the call; with "late" the destination is poisoned at the call and the
   source is read when a wait demands it, so that both a missing wait and a source or destination that is used again too
   early give wrong numbers. bytes is 4, 8 or 16, both addresses multiples of it; bytes past source_bytes become zero.
   None of these is a collective: other threads see the data after their barrier. */
static void emu_cp_async(void *shared, const void *global, unsigned bytes, unsigned source_bytes);
static void emu_cp_async_commit(void);
static void emu_cp_async_wait(unsigned pending);
static void emu_cp_async_wait_all(void); /* also lands copies that were never committed */

/* --- matrix fragments (collectives of the whole warp) ------------------------------------------------------------------
   ldmatrix .x1 .x2 .x4 (.trans): lane 8*i + j gives the address of row j (8 elements of 16 bit) of matrix i; addresses of
   lanes from 8*count on are not read. r[i] gets elements (group, 2*member) and (group, 2*member + 1) of matrix i, or those
   of the transposed matrix. Rows must be 16-byte aligned. stmatrix is the reverse. */
static inline void emu_ldmatrix(unsigned *r, const void *row, int count, bool transpose);
static inline void emu_stmatrix(void *row, const unsigned *r, int count, bool transpose);

/* d = a * b + c over m16 n8 and the named k; a is row-major, b column-major. d may be c.
   16 bit, k16:  a0 (group, 2*member..+1)  a1 (group + 8, same)  a2 (group, 2*member + 8..)  a3 (group + 8, 2*member + 8..)
                 b0 (2*member..+1, group)  b1 (2*member + 8.., group);  k8: a0 a1, b0
   8 bit,  k32:  a0 (group, 4*member..+3)  a1 (group + 8, same)  a2 (group, 4*member + 16..)  a3 (group + 8, 4*member + 16..)
                 b0 (4*member..+3, group)  b1 (4*member + 16.., group);  k16: a0 a1, b0
   tf32,   k8:   a0 (group, member)  a1 (group + 8, member)  a2 (group, member + 4)  a3 (group + 8, member + 4)
                 b0 (member, group)  b1 (member + 4, group); the low 13 bits of a word are not read
   c, d:         0 (group, 2*member)  1 (group, 2*member + 1)  2 (group + 8, 2*member)  3 (group + 8, 2*member + 1) */
static inline void emu_mma_m16n8k16_bf16(float *d, const unsigned *a, const unsigned *b, const float *c);
static inline void emu_mma_m16n8k16_f16(float *d, const unsigned *a, const unsigned *b, const float *c);
static inline void emu_mma_m16n8k8_bf16(float *d, const unsigned *a, const unsigned *b, const float *c);
static inline void emu_mma_m16n8k8_f16(float *d, const unsigned *a, const unsigned *b, const float *c);
static inline void emu_mma_m16n8k8_tf32(float *d, const unsigned *a, const unsigned *b, const float *c);
static inline void emu_mma_m16n8k32_s8(int *d, const unsigned *a, const unsigned *b, const int *c);
static inline void emu_mma_m16n8k16_s8(int *d, const unsigned *a, const unsigned *b, const int *c);
static inline void emu_mma_m16n8k32_e4m3(float *d, const unsigned *a, const unsigned *b, const float *c); /* sm_89 and later */

/* --- barriers ------------------------------------------------------------------------------------------------------------
   bar.sync id, threads and bar.arrive id, threads: id 1 to 15, threads a multiple of 32 (arrivals that complete it, from
   both calls). Barrier 0 is __syncthreads. */
static void emu_barrier(int id, int threads);
static void emu_barrier_arrive(int id, int threads);

/* mbarrier in shared memory (an 8-byte word): arrivals of one phase are counted; wait blocks until the phase of this parity
   is complete. Transaction counts and bulk copies (TMA) are not modelled. */
static void emu_mbarrier_init(unsigned long long *barrier, unsigned count);
static void emu_mbarrier_arrive(unsigned long long *barrier);
static void emu_mbarrier_wait(unsigned long long *barrier, unsigned parity);

/* --- memory ----------------------------------------------------------------------------------------------------------------
   Loads and stores with cache hints (ld.global.nc.L1::no_allocate, st.global.cs ...): one typed access; an address that is
   not a multiple of the type's size is a fault, as it is on the device. */
template <class T> static inline T emu_load(const T *p);
template <class T> static inline void emu_store(T *p, T value);
/* Ordered accesses of one word (ld.acquire.gpu, st.release.gpu, red/atom.release.gpu): the release forms include a fence. */
template <class T> static inline T emu_load_acquire(const T *p);
template <class T> static inline void emu_store_release(T *p, T value);
template <class T> static inline T emu_atomic_add_release(T *p, T value); /* returns the old value */
/* Programmatic dependent launch (griddepcontrol.wait and .launch_dependents): launches run one after the other here, but what
   other launches write is out of reach before the wait (previous.h). */
static void emu_grid_dependency_wait(int line = __builtin_LINE());
static inline void emu_launch_dependents(void) {}

/* --- words -----------------------------------------------------------------------------------------------------------------
   lop3.b32 with its truth table, prmt.b32, ex2.approx, and conversions of two 8-bit floats (low byte first). */
static inline unsigned emu_lop3(unsigned a, unsigned b, unsigned c, unsigned table);
static inline unsigned emu_prmt(unsigned a, unsigned b, unsigned selector);
static inline float emu_ex2(float x);
static inline unsigned emu_e4m3x2_to_f16x2(unsigned short pair);                /* cvt.rn.f16x2.e4m3x2 */
static inline unsigned short emu_f32x2_to_e4m3x2(float low, float high);        /* cvt.rn.satfinite.e4m3x2.f32 high, low */
static inline unsigned short emu_f16x2_to_e4m3x2(unsigned pair);                /* cvt.rn.satfinite.e4m3x2.f16x2 */

#include "numbers.h"
#include "copies.h"
#include "matrix.h"
#include "barriers.h"
#include "words.h"
