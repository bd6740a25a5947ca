/* The tile instructions (AMX) in plain C, for machines that lack them: what stands before a source takes the place of the compiler's
   intrinsics, and without it the same source has the instructions themselves.
   After the operations in Intel's manual, volume 2: TDPBF16PS sums the products of the even and of the odd halves of pairs apart,
   from zero, each by fused multiply-adds of float32 over K, adds both sums, then those to the tile; rounding is to nearest even,
   denormals are zeros on the way in and out, whatever MXCSR says. Sums of bytes wrap. What the hardware refuses ends the program. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t colsb[16];
  uint8_t rows[16];
} TilesConfig;

static _Thread_local TilesConfig tiles_config; /* palette 0: none */
static _Thread_local _Alignas(64) uint8_t tiles_data[8][16][64];

#define TILES_FAULT_UNLESS(holds, fault, text)              \
  do {                                                      \
    if (!(holds)) {                                         \
      fprintf(stderr, "tiles: %s, %s\n", fault, text);      \
      abort();                                              \
    }                                                       \
  } while (0)

static inline void tiles_release(void) {
  memset(&tiles_config, 0, sizeof tiles_config);
  memset(tiles_data, 0, sizeof tiles_data);
}

static inline void tiles_loadconfig(const void *p) {
  TilesConfig c;
  memcpy(&c, p, sizeof c);
  TILES_FAULT_UNLESS(c.palette <= 1, "#GP", "no such palette");
  tiles_release();
  if (!c.palette) return;
  for (int i = 0; i < 14; ++i) TILES_FAULT_UNLESS(!c.reserved[i], "#GP", "a reserved byte is set");
  for (int i = 8; i < 16; ++i) TILES_FAULT_UNLESS(!c.colsb[i] && !c.rows[i], "#GP", "a ninth tile is configured");
  for (int i = 0; i < 8; ++i) {
    TILES_FAULT_UNLESS(c.colsb[i] <= 64 && c.rows[i] <= 16, "#GP", "a tile is larger than 16 rows of 64 bytes");
    TILES_FAULT_UNLESS(!c.colsb[i] == !c.rows[i], "#GP", "a tile has rows without bytes, or bytes without rows");
  }
  TILES_FAULT_UNLESS(!c.start_row, "stand-in", "no load goes on where one was interrupted");
  tiles_config = c;
}

static inline void tiles_valid(int tile) {
  TILES_FAULT_UNLESS(tiles_config.palette, "#UD", "no configuration is loaded");
  TILES_FAULT_UNLESS(tile >= 0 && tile < 8 && tiles_config.rows[tile], "#UD", "the tile is not configured");
  TILES_FAULT_UNLESS(tiles_config.colsb[tile] % 4 == 0, "#UD", "a row is no multiple of four bytes");
}

static inline void tiles_zero(int tile) {
  tiles_valid(tile);
  memset(tiles_data[tile], 0, sizeof tiles_data[tile]);
}

static inline void tiles_load(int tile, const void *base, long stride) {
  tiles_zero(tile);
  for (int row = 0; row < tiles_config.rows[tile]; ++row)
    memcpy(tiles_data[tile][row], (const char *)base + row * stride, tiles_config.colsb[tile]);
}

static inline void tiles_store(int tile, void *base, long stride) {
  tiles_valid(tile);
  for (int row = 0; row < tiles_config.rows[tile]; ++row)
    memcpy((char *)base + row * stride, tiles_data[tile][row], tiles_config.colsb[tile]);
}

/* c[m, n] += a[m, k] b[k, n], each element of a and b four bytes. */
static inline void tiles_fit(int c, int a, int b) {
  TILES_FAULT_UNLESS(c != a && c != b && a != b, "#UD", "a tile is named twice");
  tiles_valid(c), tiles_valid(a), tiles_valid(b);
  const TilesConfig *f = &tiles_config;
  TILES_FAULT_UNLESS(f->colsb[c] == f->colsb[b] && f->rows[c] == f->rows[a] && f->colsb[a] == 4 * f->rows[b], "#UD",
                     "the shapes of the tiles do not fit");
}

static inline void tiles_dp8(int c, int a, int b, int signed_a, int signed_b) {
  tiles_fit(c, a, b);
  for (int m = 0; m < tiles_config.rows[c]; ++m) {
    uint32_t sums[16];
    memcpy(sums, tiles_data[c][m], sizeof sums);
    for (int k = 0; k < tiles_config.rows[b]; ++k)
      for (int n = 0; n < tiles_config.colsb[c] / 4; ++n)
        for (int i = 0; i < 4; ++i) {
          const uint8_t x = tiles_data[a][m][4 * k + i], y = tiles_data[b][k][4 * n + i];
          sums[n] += (uint32_t)((signed_a ? (int8_t)x : x) * (signed_b ? (int8_t)y : y));
        }
    memcpy(tiles_data[c][m], sums, sizeof sums);
  }
}

/* Written out, so that a compiler neither joins nor moves them away from the mode that they run in. */
#define TILES_FMA(acc, x, y) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(x), "x"(y))
#define TILES_ADD(acc, x) __asm__ volatile("vaddps %1, %0, %0" : "+x"(acc) : "x"(x))

static inline void tiles_dpbf16(int c, int a, int b) {
  tiles_fit(c, a, b);
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(0x9fc0); /* nearest even, denormals are zeros, no exceptions */
  for (int m = 0; m < tiles_config.rows[c]; ++m)
    for (int n = 0; n < tiles_config.colsb[c] / 4; n += 8) { /* what is beyond a row is zero, and stays so */
      __m256 even = _mm256_setzero_ps(), odd = even, sum = _mm256_loadu_ps((const float *)tiles_data[c][m] + n);
      for (int k = 0; k < tiles_config.rows[b]; ++k) {
        uint32_t pair;
        memcpy(&pair, &tiles_data[a][m][4 * k], 4);
        const __m256i pairs = _mm256_loadu_si256((const __m256i *)(tiles_data[b][k] + 4 * n));
        const __m256i high = _mm256_set1_epi32((int)0xffff0000);
        TILES_FMA(even, _mm256_castsi256_ps(_mm256_set1_epi32((int)(pair << 16))), _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)));
        TILES_FMA(odd, _mm256_castsi256_ps(_mm256_set1_epi32((int)(pair & 0xffff0000))), _mm256_castsi256_ps(_mm256_and_si256(pairs, high)));
      }
      TILES_ADD(even, odd);
      TILES_ADD(sum, even);
      _mm256_storeu_ps((float *)tiles_data[c][m] + n, sum);
      if (tiles_config.colsb[c] < 64) memset(tiles_data[c][m] + tiles_config.colsb[c], 0, 64 - tiles_config.colsb[c]);
    }
  _mm_setcsr(mode);
}

#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#undef _tile_dpbuud
#undef _tile_dpbf16ps
#define _tile_loadconfig(p) tiles_loadconfig(p)
#define _tile_release() tiles_release()
#define _tile_zero(tile) tiles_zero(tile)
#define _tile_loadd(tile, base, stride) tiles_load(tile, base, stride)
#define _tile_stream_loadd(tile, base, stride) tiles_load(tile, base, stride)
#define _tile_stored(tile, base, stride) tiles_store(tile, base, stride)
#define _tile_dpbssd(c, a, b) tiles_dp8(c, a, b, 1, 1)
#define _tile_dpbsud(c, a, b) tiles_dp8(c, a, b, 1, 0)
#define _tile_dpbusd(c, a, b) tiles_dp8(c, a, b, 0, 1)
#define _tile_dpbuud(c, a, b) tiles_dp8(c, a, b, 0, 0)
#define _tile_dpbf16ps(c, a, b) tiles_dpbf16(c, a, b)
