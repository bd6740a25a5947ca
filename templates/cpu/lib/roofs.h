/* What the machine gives these threads: read bandwidth and the rate of each dot product. */

typedef struct {
  Ctx *ctx;
  const uint8_t *data;
  int64_t bytes;
  int64_t rounds;
  _Atomic int32_t next;
  _Atomic int64_t sink;
} Roof;

/* Run something else than a step on the pool, with its usual barrier at the end. */
static double roof_time(Roof *r, void (*work)(void *, int)) {
  Pool *p = &r->ctx->pool;
  void (*usual)(void *, int) = p->work;
  p->work = work;
  p->arg = r;
  const double start = seconds();
  pool_run(p, 1);
  const double end = seconds();
  p->work = usual;
  p->arg = r->ctx;
  return end - start;
}

static void read_work(void *argument, int thread) {
  enum { PIECE = 1 << 18 };
  Roof *r = argument;
  vi a = {0}, b = {0}, c = {0}, d = {0};
  for (int64_t at; (at = (int64_t)atomic_fetch_add(&r->next, 1) * PIECE) + PIECE <= r->bytes;)
    for (const uint8_t *p = r->data + at, *end = p + PIECE; p < end; p += 16 * LANES) {
      a ^= vi_load(p);
      b ^= vi_load(p + 4 * LANES);
      c ^= vi_load(p + 8 * LANES);
      d ^= vi_load(p + 12 * LANES);
    }
  a ^= b ^ c ^ d;
  atomic_fetch_add(&r->sink, a[0] + a[LANES - 1]);
  barrier_wait(&r->ctx->pool, thread);
}

/* Bytes per second. */
static double roof_read(Ctx *c, const uint8_t *data, int64_t bytes) {
  Roof r = {.ctx = c, .data = data, .bytes = bytes};
  return (double)bytes / roof_time(&r, read_work);
}

#define ROOF_CHAINS 12

/* The sums are plain variables, which compilers keep in registers; x and y are made opaque so that nothing is hoisted. */
#define ROOF_WORK(NAME, TYPE, STEP)                                                                              \
  static void NAME(void *argument, int thread) {                                                                 \
    Roof *r = argument;                                                                                          \
    TYPE s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0}, s6 = {0}, s7 = {0}, s8 = {0}, s9 = {0};     \
    TYPE s10 = {0}, s11 = {0};                                                                                   \
    vi x = vi_set(0x3f803f80 + thread), y = vi_set(0x01010101);                                                  \
    for (int64_t i = 0; i < r->rounds; ++i) {                                                                    \
      STEP(s0) STEP(s1) STEP(s2) STEP(s3) STEP(s4) STEP(s5) STEP(s6) STEP(s7) STEP(s8) STEP(s9) STEP(s10)        \
      STEP(s11)                                                                                                  \
    }                                                                                                            \
    s0 += s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11;                                                \
    atomic_fetch_add(&r->sink, (int64_t)(s0[0] != 0));                                                           \
    barrier_wait(&r->ctx->pool, thread);                                                                         \
  }
#if defined(__x86_64__)
#define ROOF_OPAQUE(x) __asm__ volatile("" : "+v"(x))
#else
#define ROOF_OPAQUE(x) __asm__ volatile("" : "+w"(x))
#endif
#define ROOF_F32(s) ROOF_OPAQUE(x); s += (vf)x * (vf)y;
#define ROOF_BF16(s) ROOF_OPAQUE(x); s = dot_bf16(s, x, y);
#define ROOF_INT8(s) ROOF_OPAQUE(x); s = dot_u8s8(s, x, y);
ROOF_WORK(f32_work, vf, ROOF_F32)
ROOF_WORK(bf16_work, vf, ROOF_BF16)
ROOF_WORK(int8_work, vi, ROOF_INT8)

/* Operations per second (a multiply and an add are two). kind 0: float32, 1: bfloat16 pairs, 2: bytes. */
static double roof_dot(Ctx *c, int kind) {
  Roof r = {.ctx = c, .rounds = 2000000};
  const double each = 2.0 * LANES * (kind == 0 ? 1 : kind == 1 ? 2 : 4);
  return each * ROOF_CHAINS * (double)r.rounds * c->pool.threads / roof_time(&r, kind == 0 ? f32_work : kind == 1 ? bf16_work : int8_work);
}
