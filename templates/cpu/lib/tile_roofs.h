/* The rate of products of full tiles, four sums a thread: as many as there are in products of matrices. */

#define TILE_ROOF(NAME, PRODUCT)                                  \
  static void NAME(void *argument, int thread) {                  \
    Roof *r = argument;                                           \
    tiles_begin(TILE_ROWS, 16, 0);                                \
    _tile_zero(0);                                                \
    _tile_zero(1);                                                \
    _tile_zero(2);                                                \
    _tile_zero(3);                                                \
    _tile_zero(4);                                                \
    _tile_zero(5);                                                \
    _tile_zero(6);                                                \
    for (int64_t i = 0; i < r->rounds; ++i) {                     \
      PRODUCT(0, 4, 5);                                           \
      PRODUCT(1, 4, 6);                                           \
      PRODUCT(2, 4, 5);                                           \
      PRODUCT(3, 4, 6);                                           \
    }                                                             \
    _tile_release();                                              \
    barrier_wait(&r->ctx->pool, thread);                          \
  }
TILE_ROOF(bf16_tile_work, _tile_dpbf16ps)
TILE_ROOF(int8_tile_work, _tile_dpbsud)

/* Operations per second (a multiply and an add are two). kind 0: bfloat16 pairs, 1: bytes. */
static double roof_tile(Ctx *c, int kind, int64_t rounds) {
  Roof r = {.ctx = c, .rounds = rounds};
  const double each = 2.0 * TILE_ROWS * LANES * 16 * (kind == 0 ? 2 : 4);
  return 4 * each * (double)r.rounds * c->pool.threads / roof_time(&r, kind == 0 ? bf16_tile_work : int8_tile_work);
}
