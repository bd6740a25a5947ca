/* What products by tiles share. There are eight registers, each of up to 16 rows of up to 64 bytes, as a configuration of the thread
   says; a thread that has none pays nothing for them when it loses its core, so a kernel that loads one releases it at its end. */

enum { TILE_ROWS = 16, TILE_BLOCKS = 3 }; /* blocks of rows that meet a chunk of weights before the next is read */

/* Compilers do not know that a tile is loaded from memory: what was stored before must be there. */
INLINE void tiles_see_memory(void) { __asm__ volatile("" : : : "memory"); }

/* `height` rows of x and of sums, and `words` of K of both factors; `last` words (0: none) of what K ends with. */
static void tiles_begin(int height, int words, int last) {
  _Alignas(64) struct {
    uint8_t palette, start_row, unused[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config = {.palette = 1};
  for (int i = 0; i < 8; ++i) {
    const int k = last && i > 5 ? last : words, of_x = i == 4 || (last && i == 6);
    config.rows[i] = (uint8_t)(i < 4 || of_x ? height : k);
    config.bytes[i] = (uint16_t)(of_x ? 4 * k : 4 * LANES);
  }
  __asm__ volatile("" : : "r"(&config) : "memory"); /* gcc 12 holds that eight bytes of it are read, and would store no others */
  _tile_loadconfig(&config);
}
