/* One product of tiles, for tests/codegen/test_tiles.py: with tiles.h before it by the stand-in, else by the instructions. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

/* c [rows, columns] += a [rows, words] b [words, columns], elements of four bytes one after the other. `stream`: by the other load.
   With `fault` one thing is asked for that the hardware refuses. */
__attribute__((visibility("default"))) void product(int kind, int rows, int words, int columns, const void *a, const void *b, void *c, int stream, int fault) {
  _Alignas(64) uint8_t config[64] = {1};
  const int height[3] = {rows, rows, words}, width[3] = {4 * columns, 4 * words, 4 * columns};
  for (int tile = 0; tile < 3; ++tile) {
    config[48 + tile] = (uint8_t)height[tile];
    config[16 + 2 * tile] = (uint8_t)width[tile];
  }
  if (fault == 1) config[0] = 2;
  if (fault == 2) config[3] = 1;
  if (fault == 3) config[48] = 17;
  if (fault == 4) config[16 + 2 * 7] = 4;
  if (fault == 5) config[50] = (uint8_t)(words - 1);
  if (fault == 6) config[48 + 8] = 1;
  __asm__ volatile("" : : "r"(config) : "memory");
  if (fault != 7) _tile_loadconfig(config);
  if (fault == 8) _tile_release();
  _tile_zero(0);
  if (stream) {
    _tile_stream_loadd(0, c, 4 * columns);
    _tile_stream_loadd(1, a, 4 * words);
    _tile_stream_loadd(2, b, 4 * columns);
  } else {
    _tile_loadd(0, c, 4 * columns);
    _tile_loadd(1, a, 4 * words);
    _tile_loadd(2, b, 4 * columns);
  }
  if (fault == 9) _tile_dpbssd(0, 1, 1);
  if (fault == 10) _tile_zero(5);
  switch (kind) {
    case 0: _tile_dpbssd(0, 1, 2); break;
    case 1: _tile_dpbsud(0, 1, 2); break;
    case 2: _tile_dpbusd(0, 1, 2); break;
    case 3: _tile_dpbuud(0, 1, 2); break;
    default: _tile_dpbf16ps(0, 1, 2);
  }
  _tile_stored(0, c, 4 * columns);
  _tile_release();
}
