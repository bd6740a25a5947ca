/* Fragments of a warp gathered into small matrices, multiplied, and given back. */
#pragma once

typedef float EmuRow __attribute__((vector_size(32))); /* n = 8 columns */

struct EmuTile {
  const uint16_t *row;
  int count;
  bool transpose;
  unsigned r[4];
};

static EMU_NOINLINE void emu_tile_fault(const char *what, void **operands) {
  for (int lane = 0; lane < EMU_LANES; ++lane)
    if ((uintptr_t)((EmuTile *)operands[lane])->row % 16) emu_fault("%s: the row of lane %d is not 16-byte aligned", what, lane);
}

static void emu_ldmatrix_last(void **operands, uint32_t lanes) {
  if (lanes != ~0u) emu_fault("ldmatrix without all lanes of the warp");
  EmuTile *const *tiles = (EmuTile *const *)operands;
  const int count = tiles[0]->count;
  const uint16_t *rows[EMU_LANES];
  uintptr_t low = 0;
  for (int i = 0; i < 8 * count; ++i) {
    rows[i] = tiles[i]->row;
    low |= (uintptr_t)rows[i];
  }
  if (low % 16) emu_tile_fault("ldmatrix", operands);
  const bool transpose = tiles[0]->transpose;
  for (int lane = 0; lane < EMU_LANES; ++lane) {
    const int group = lane / 4, member = lane % 4;
    unsigned *r = tiles[lane]->r;
    if (transpose)
      for (int i = 0; i < count; ++i)
        r[i] = (unsigned)rows[8 * i + 2 * member][group] | (unsigned)rows[8 * i + 2 * member + 1][group] << 16;
    else
      for (int i = 0; i < count; ++i) memcpy(&r[i], &rows[8 * i + group][2 * member], 4);
  }
}
static inline void emu_ldmatrix(unsigned *r, const void *row, int count, bool transpose) {
  EmuTile tile = {(const uint16_t *)row, count, transpose, {0, 0, 0, 0}};
  if (emu.current->lane < 8 * count) emu_watch(row, 16, false);
  emu_collective(~0u, "ldmatrix", &tile, emu_ldmatrix_last);
  for (int i = 0; i < count; ++i) r[i] = tile.r[i];
}

static void emu_stmatrix_last(void **operands, uint32_t lanes) {
  if (lanes != ~0u) emu_fault("stmatrix without all lanes of the warp");
  EmuTile *const *tiles = (EmuTile *const *)operands;
  for (int i = 0; i < 8 * tiles[0]->count; ++i)
    if ((uintptr_t)tiles[i]->row % 16) emu_tile_fault("stmatrix", operands);
  for (int lane = 0; lane < EMU_LANES; ++lane)
    for (int i = 0; i < tiles[0]->count; ++i)
      for (int e = 0; e < 2; ++e) {
        const int group = lane / 4, place = 2 * (lane % 4) + e;
        const int row = tiles[0]->transpose ? place : group, column = tiles[0]->transpose ? group : place;
        ((uint16_t *)tiles[8 * i + row]->row)[column] = (uint16_t)(tiles[lane]->r[i] >> (16 * e));
      }
}
static inline void emu_stmatrix(void *row, const unsigned *r, int count, bool transpose) {
  EmuTile tile = {(const uint16_t *)row, count, transpose, {0, 0, 0, 0}};
  for (int i = 0; i < count; ++i) tile.r[i] = r[i];
  if (emu.current->lane < 8 * count) emu_watch(row, 16, true);
  emu_collective(~0u, "stmatrix", &tile, emu_stmatrix_last);
}

/* --- mma ------------------------------------------------------------------------------------------------------------------

   A lane's words of a alternate between row group and row group + 8; word 2*w and 2*w + 1 of a go with word w of b. The place
   of an element in k is (part of the word, w, member), for a and b alike; no other order of k is needed to sum. */

template <int NA, int NB, class T> struct EmuMma {
  unsigned a[NA], b[NB];
  T c[4];
};

struct EmuBf16 {
  typedef float type;
  enum { parts = 2 };
  static void unpack(const unsigned *words, int n, float *to) {
    for (int i = 0; i < n; ++i) to[i] = emu_float_of(words[i] << 16);
    for (int i = 0; i < n; ++i) to[n + i] = emu_float_of(words[i] & 0xffff0000u);
  }
};
struct EmuF16 {
  typedef float type;
  enum { parts = 2 };
  static void unpack(const unsigned *words, int n, float *to) {
#if defined(__F16C__) && !defined(__clang__) /* clang makes this of the plain loop */
    typedef short Halves __attribute__((vector_size(16)));
    alignas(16) uint16_t low[128], high[128];
    for (int i = 0; i < n; ++i) low[i] = (uint16_t)words[i];
    for (int i = 0; i < n; ++i) high[i] = (uint16_t)(words[i] >> 16);
    for (int i = 0; i < n; i += 8) {
      *(EmuRow *)&to[i] = __builtin_ia32_vcvtph2ps256(*(const Halves *)&low[i]);
      *(EmuRow *)&to[n + i] = __builtin_ia32_vcvtph2ps256(*(const Halves *)&high[i]);
    }
#else
    for (int i = 0; i < n; ++i) {
      to[i] = emu_from_f16((uint16_t)words[i]);
      to[n + i] = emu_from_f16((uint16_t)(words[i] >> 16));
    }
#endif
  }
};
struct EmuE4m3 {
  typedef float type;
  enum { parts = 4 };
  static void unpack(const unsigned *words, int n, float *to) {
    static float table[256];
    if (!table[1])
      for (int i = 0; i < 256; ++i) table[i] = emu_from_e4m3((uint8_t)i);
    for (int p = 0; p < 4; ++p)
      for (int i = 0; i < n; ++i) to[p * n + i] = table[words[i] >> 8 * p & 255];
  }
};
struct EmuTf32 {
  typedef float type;
  enum { parts = 1 };
  static void unpack(const unsigned *words, int n, float *to) {
    for (int i = 0; i < n; ++i) to[i] = emu_float_of(words[i] & 0xffffe000u);
  }
};
struct EmuS8 {
  typedef int type;
  enum { parts = 4 };
  static void unpack(const unsigned *words, int n, int *to) {
    for (int p = 0; p < 4; ++p)
      for (int i = 0; i < n; ++i) to[p * n + i] = (int8_t)(words[i] >> 8 * p);
  }
};

template <class F, int K> static void emu_mma_last(void **operands, uint32_t lanes) {
  typedef typename F::type T;
  typedef T Row __attribute__((vector_size(32)));
  enum { NB = K / (4 * F::parts), NA = 2 * NB, WORDS_A = EMU_LANES * NA, WORDS_B = EMU_LANES * NB };
  if (lanes != ~0u) emu_fault("mma without all lanes of the warp");
  EmuMma<NA, NB, T> *const *all = (EmuMma<NA, NB, T> *const *)operands;
  alignas(32) unsigned words_a[WORDS_A], words_b[WORDS_B];
  alignas(32) T a[F::parts * WORDS_A], parts_b[F::parts * WORDS_B];
  Row b[K], sum[16];
  for (int lane = 0; lane < EMU_LANES; ++lane) {
    const EmuMma<NA, NB, T> *m = all[lane];
    const int group = lane / 4, member = lane % 4;
    memcpy(&words_a[NA * lane], m->a, sizeof m->a);
    for (int w = 0; w < NB; ++w) words_b[(w * 4 + member) * 8 + group] = m->b[w];
    memcpy((T *)&sum[group] + 2 * member, &m->c[0], 8);
    memcpy((T *)&sum[group + 8] + 2 * member, &m->c[2], 8);
  }
  F::unpack(words_a, WORDS_A, a);
  F::unpack(words_b, WORDS_B, parts_b);
  memcpy(b, parts_b, sizeof b);
  for (int group = 0; group < 8; group += 2) {
    Row s0 = sum[group], s1 = sum[group + 8], s2 = sum[group + 1], s3 = sum[group + 9];
#pragma GCC unroll 32
    for (int k = 0; k < K; ++k) {
      const int part = k / (4 * NB), w = k / 4 % NB, member = k % 4;
      const T *row = a + part * WORDS_A + NA * (4 * group + member) + 2 * w;
      s0 += row[0] * b[k];
      s1 += row[1] * b[k];
      s2 += row[4 * NA] * b[k];
      s3 += row[4 * NA + 1] * b[k];
    }
    sum[group] = s0, sum[group + 8] = s1, sum[group + 1] = s2, sum[group + 9] = s3;
  }
  for (int lane = 0; lane < EMU_LANES; ++lane) {
    T *d = all[lane]->c;
    memcpy(d, (T *)&sum[lane / 4] + 2 * (lane % 4), 8);
    memcpy(d + 2, (T *)&sum[lane / 4 + 8] + 2 * (lane % 4), 8);
  }
}

template <class F, int K, class T>
static inline void emu_mma(const char *what, T *d, const unsigned *a, const unsigned *b, const T *c) {
  enum { NB = K / (4 * F::parts), NA = 2 * NB };
  EmuMma<NA, NB, T> m;
  for (int i = 0; i < NA; ++i) m.a[i] = a[i];
  for (int i = 0; i < NB; ++i) m.b[i] = b[i];
  for (int i = 0; i < 4; ++i) m.c[i] = c[i];
  emu_collective(~0u, what, &m, emu_mma_last<F, K>);
  for (int i = 0; i < 4; ++i) d[i] = m.c[i];
}

#define EMU_MMA(shape, T, F, K)                                                                            \
  static inline void emu_mma_##shape(T *d, const unsigned *a, const unsigned *b, const T *c) {             \
    emu_mma<F, K>("mma." #shape, d, a, b, c);                                                              \
  }
EMU_MMA(m16n8k16_bf16, float, EmuBf16, 16)
EMU_MMA(m16n8k16_f16, float, EmuF16, 16)
EMU_MMA(m16n8k8_bf16, float, EmuBf16, 8)
EMU_MMA(m16n8k8_f16, float, EmuF16, 8)
EMU_MMA(m16n8k8_tf32, float, EmuTf32, 8)
EMU_MMA(m16n8k32_e4m3, float, EmuE4m3, 32)
EMU_MMA(m16n8k32_s8, int, EmuS8, 32)
EMU_MMA(m16n8k16_s8, int, EmuS8, 16)
#undef EMU_MMA
