/* What all kernels of a step share: the context, the launch record, slots of the arena, and how work is claimed. */

enum { ROWS_TOKENS, ROWS_SAMPLES };

typedef struct {
  _Alignas(CACHE_LINE) _Atomic int32_t next;
} Counter;

/* `count` query tokens of one sequence from token `first` on. */
typedef struct {
  int32_t seq, first, count;
} QueryTile;

/* One attention work item: a tile's rows of one KV head beside the keys from `first` to before `end`. Of a context that threads
   share it is part `part` of `parts`, whose sums are kept from number `partial` on until all are there. */
typedef struct {
  const QueryTile *tile;
  int32_t head, first, end, part, parts, partial;
} KeyRange;

/* Threads share contexts while there are fewer heads of sequences than this for each thread: with more, all are busy anyway. */
enum { SPLIT_BELOW = 8 };

typedef struct Ctx {
  FerrumConfig config;
  FerrumStep *step;
  Pool pool;
  uint8_t *slot[NUM_SLOTS + 1];
  uint8_t *scratch; /* threads * SCRATCH_BYTES */
  QueryTile *tiles;
  Counter *counters;
  _Atomic int32_t *arrived; /* parts of each head of each sequence, where contexts are shared: below threads * SPLIT_BELOW */
  int32_t num_tiles, decode_only;
  int32_t first, last; /* the launches that a step runs: all, but when a pack is verified */
  double *profile; /* seconds of each launch, summed over steps; NULL when nobody asks */
} Ctx;

/* One call of one kernel: slots of the arena (of all inputs but the first, the rows are shared), the bytes of a KV block before the
   layer's, offsets into the weights. */
typedef struct Launch {
  void (*run)(const Ctx *, const struct Launch *, int thread);
  int32_t index, rows, in, in_private, out, other[LAUNCH_OTHERS], state, sync;
  int64_t weight[LAUNCH_WEIGHTS];
} Launch;

INLINE int launch_rows(const Ctx *c, const Launch *l) {
  return l->rows == ROWS_TOKENS ? c->step->num_tokens : c->step->num_samples;
}

/* Cheap row-wise kernels run on every thread into private rows when there are few of them: that costs less than the
   barrier that shared rows would need. */
INLINE int replicated(int rows) { return rows <= REPLICATE_ROWS; }

INLINE uint8_t *private_slot(const Ctx *c, int slot, int rows, int thread) {
  uint8_t *base = c->slot[slot];
  return replicated(rows) ? base + (size_t)thread * REPLICATE_ROWS * SLOT_ROW_BYTES[slot] : base;
}

INLINE const uint8_t *input_slot(const Ctx *c, const Launch *l, int rows, int thread) {
  return l->in_private ? private_slot(c, l->in, rows, thread) : c->slot[l->in];
}

INLINE int claim(const Ctx *c, const Launch *l, int grain) {
  return atomic_fetch_add_explicit(&c->counters[l->index].next, grain, memory_order_relaxed);
}

/* Units per claim: about eight claims a thread, so that the counter stays cheap and a slow thread is relieved. */
INLINE int claim_grain(const Ctx *c, int units) {
  int grain = units / (c->pool.threads * 8);
  return grain < 1 ? 1 : grain;
}

INLINE int min_int(int a, int b) { return a < b ? a : b; }
INLINE int max_int(int a, int b) { return a > b ? a : b; }

/* The rows of one claim of a row-wise kernel; all rows at once when they are replicated. */
INLINE int claim_rows(const Ctx *c, const Launch *l, int rows, int *first, int *state) {
  if (replicated(rows)) {
    *first = 0;
    return (*state)++ ? 0 : rows;
  }
  *first = claim(c, l, 4);
  return *first < rows ? min_int(4, rows - *first) : 0;
}
