/* Fragments of a warp gathered into small matrices, multiplied, and given back. */
#pragma once

typedef float EmuRow __attribute__((vector_size(32))); /* n = 8 columns */
typedef int EmuIntRow __attribute__((vector_size(32)));

struct EmuTile {
  const void *row;
  unsigned *r;
  int count;
  bool transpose;
};

static void emu_ldmatrix_last(void **operands, uint32_t lanes) {
  if (lanes != ~0u) emu_fault("ldmatrix without all lanes of the warp");
  EmuTile *const *tiles = (EmuTile *const *)operands;
  const int count = tiles[0]->count;
  for (int i = 0; i < count; ++i) {
    const uint16_t *rows[8];
    for (int j = 0; j < 8; ++j) {
      rows[j] = (const uint16_t *)tiles[8 * i + j]->row;
      if ((uintptr_t)rows[j] % 16) emu_fault("ldmatrix: the row of lane %d is not 16-byte aligned", 8 * i + j);
    }
    for (int lane = 0; lane < EMU_LANES; ++lane) {
      const int group = lane / 4, pair = 2 * (lane % 4);
      const uint16_t low = tiles[lane]->transpose ? rows[pair][group] : rows[group][pair];
      const uint16_t high = tiles[lane]->transpose ? rows[pair + 1][group] : rows[group][pair + 1];
      tiles[lane]->r[i] = (unsigned)low | (unsigned)high << 16;
    }
  }
}
static void emu_ldmatrix(unsigned *r, const void *row, int count, bool transpose) {
  EmuTile tile = {row, r, count, transpose};
  emu_collective(~0u, "ldmatrix", &tile, emu_ldmatrix_last);
}

static void emu_stmatrix_last(void **operands, uint32_t lanes) {
  if (lanes != ~0u) emu_fault("stmatrix without all lanes of the warp");
  EmuTile *const *tiles = (EmuTile *const *)operands;
  for (int i = 0; i < tiles[0]->count; ++i)
    for (int lane = 0; lane < EMU_LANES; ++lane) {
      const int group = lane / 4, pair = 2 * (lane % 4);
      for (int e = 0; e < 2; ++e) {
        const int row = tiles[lane]->transpose ? pair + e : group, column = tiles[lane]->transpose ? group : pair + e;
        uint16_t *to = (uint16_t *)tiles[8 * i + row]->row;
        if ((uintptr_t)to % 16) emu_fault("stmatrix: the row of lane %d is not 16-byte aligned", 8 * i + row);
        to[column] = (uint16_t)(tiles[lane]->r[i] >> (16 * e));
      }
    }
}
static void emu_stmatrix(void *row, const unsigned *r, int count, bool transpose) {
  unsigned copy[4];
  for (int i = 0; i < count; ++i) copy[i] = r[i];
  EmuTile tile = {row, copy, count, transpose};
  emu_collective(~0u, "stmatrix", &tile, emu_stmatrix_last);
}

struct EmuMma {
  void *d;
  const unsigned *a, *b;
  const void *c;
};

static void emu_unpack_bf16(unsigned word, float *to) {
  to[0] = emu_float_of(word << 16);
  to[1] = emu_float_of(word & 0xffff0000u);
}
static void emu_unpack_f16(unsigned word, float *to) {
  to[0] = emu_from_f16((uint16_t)word);
  to[1] = emu_from_f16((uint16_t)(word >> 16));
}
static void emu_unpack_e4m3(unsigned word, float *to) {
  for (int i = 0; i < 4; ++i) to[i] = emu_from_e4m3((uint8_t)(word >> 8 * i));
}
static void emu_unpack_tf32(unsigned word, float *to) { to[0] = emu_float_of(word & 0xffffe000u); }

/* PER elements in a word; the words of a column block of 4 * PER elements lie side by side in the four members of a group. */
template <int K, int PER, void (*UNPACK)(unsigned, float *)>
static void emu_mma_last(void **operands, uint32_t lanes) {
  if (lanes != ~0u) emu_fault("mma without all lanes of the warp");
  EmuMma *const *all = (EmuMma *const *)operands;
  constexpr int words = K / (4 * PER);
  float a[16][K], columns[8][K];
  EmuRow b[K], sum[16];
  for (int lane = 0; lane < EMU_LANES; ++lane) {
    const EmuMma *m = all[lane];
    const int group = lane / 4, at = PER * (lane % 4);
    for (int w = 0; w < words; ++w) {
      UNPACK(m->a[2 * w], &a[group][at + 4 * PER * w]);
      UNPACK(m->a[2 * w + 1], &a[group + 8][at + 4 * PER * w]);
      UNPACK(m->b[w], &columns[group][at + 4 * PER * w]);
    }
    const float *c = (const float *)m->c;
    float *row = (float *)&sum[group] + 2 * (lane % 4), *below = (float *)&sum[group + 8] + 2 * (lane % 4);
    row[0] = c[0], row[1] = c[1], below[0] = c[2], below[1] = c[3];
  }
  for (int k = 0; k < K; ++k)
    for (int n = 0; n < 8; ++n) b[k][n] = columns[n][k];
  for (int i = 0; i < 16; i += 4) {
    EmuRow s0 = sum[i], s1 = sum[i + 1], s2 = sum[i + 2], s3 = sum[i + 3];
    for (int k = 0; k < K; ++k) {
      s0 += a[i][k] * b[k];
      s1 += a[i + 1][k] * b[k];
      s2 += a[i + 2][k] * b[k];
      s3 += a[i + 3][k] * b[k];
    }
    sum[i] = s0, sum[i + 1] = s1, sum[i + 2] = s2, sum[i + 3] = s3;
  }
  for (int lane = 0; lane < EMU_LANES; ++lane) {
    float *d = (float *)all[lane]->d;
    const int group = lane / 4, pair = 2 * (lane % 4);
    d[0] = sum[group][pair], d[1] = sum[group][pair + 1], d[2] = sum[group + 8][pair], d[3] = sum[group + 8][pair + 1];
  }
}

template <int K>
static void emu_mma_s8_last(void **operands, uint32_t lanes) {
  if (lanes != ~0u) emu_fault("mma without all lanes of the warp");
  EmuMma *const *all = (EmuMma *const *)operands;
  int8_t a[16][K], columns[8][K];
  EmuIntRow b[K], sum[16];
  for (int lane = 0; lane < EMU_LANES; ++lane) {
    const EmuMma *m = all[lane];
    const int group = lane / 4, at = 4 * (lane % 4);
    for (int w = 0; w < K / 16; ++w) {
      memcpy(&a[group][at + 16 * w], &m->a[2 * w], 4);
      memcpy(&a[group + 8][at + 16 * w], &m->a[2 * w + 1], 4);
      memcpy(&columns[group][at + 16 * w], &m->b[w], 4);
    }
    const int *c = (const int *)m->c;
    int *row = (int *)&sum[group] + 2 * (lane % 4), *below = (int *)&sum[group + 8] + 2 * (lane % 4);
    row[0] = c[0], row[1] = c[1], below[0] = c[2], below[1] = c[3];
  }
  for (int k = 0; k < K; ++k)
    for (int n = 0; n < 8; ++n) b[k][n] = columns[n][k];
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < K; ++k) sum[i] += (int)a[i][k] * b[k];
  for (int lane = 0; lane < EMU_LANES; ++lane) {
    int *d = (int *)all[lane]->d;
    const int group = lane / 4, pair = 2 * (lane % 4);
    d[0] = sum[group][pair], d[1] = sum[group][pair + 1], d[2] = sum[group + 8][pair], d[3] = sum[group + 8][pair + 1];
  }
}

#define EMU_MMA(shape, T, last)                                                                            \
  static void emu_mma_##shape(T *d, const unsigned *a, const unsigned *b, const T *c) {                    \
    EmuMma m = {d, a, b, c};                                                                               \
    emu_collective(~0u, "mma." #shape, &m, last);                                                          \
  }
EMU_MMA(m16n8k16_bf16, float, (emu_mma_last<16, 2, emu_unpack_bf16>))
EMU_MMA(m16n8k16_f16, float, (emu_mma_last<16, 2, emu_unpack_f16>))
EMU_MMA(m16n8k8_bf16, float, (emu_mma_last<8, 2, emu_unpack_bf16>))
EMU_MMA(m16n8k8_f16, float, (emu_mma_last<8, 2, emu_unpack_f16>))
EMU_MMA(m16n8k8_tf32, float, (emu_mma_last<8, 1, emu_unpack_tf32>))
EMU_MMA(m16n8k32_e4m3, float, (emu_mma_last<32, 4, emu_unpack_e4m3>))
EMU_MMA(m16n8k32_s8, int, emu_mma_s8_last<32>)
EMU_MMA(m16n8k16_s8, int, emu_mma_s8_last<16>)
#undef EMU_MMA
