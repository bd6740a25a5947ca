/* Opening a step, laying out its arena, and running the list of launches. */

/* A launch's barrier: after every kernel, but not after replicated row-wise ones, nor after a KV write that the
   attention units do themselves. After the last launch of a run there is always one: who asked for the run then changes what
   threads read (the step's numbers, the range of launches), and one that comes late must not find that of the next run. */
enum { SYNC_ALWAYS, SYNC_IF_SHARED, SYNC_IF_PREFILL };

INLINE int64_t align64(int64_t n) { return (n + 63) & ~(int64_t)63; }

/* Bytes of the arena; with a context, also where everything in it starts. */
static int64_t arena_layout(const FerrumConfig *f, Ctx *c) {
  int64_t at = 0;
  for (int i = 0; i < NUM_SLOTS; ++i) {
    if (c) c->slot[i] = f->arena + at;
    const int64_t rows = SLOT_ROWS[i] == ROWS_TOKENS ? f->max_tokens : f->max_samples;
    const int64_t private_rows = (int64_t)f->num_threads * REPLICATE_ROWS;
    at += align64((rows > private_rows ? rows : private_rows) * SLOT_ROW_BYTES[i]);
  }
  if (c) c->tiles = (QueryTile *)(f->arena + at);
  at += align64((int64_t)(f->max_tokens + f->max_seqs) * (int64_t)sizeof(QueryTile));
  if (c) c->counters = (Counter *)(f->arena + at);
  at += align64(NUM_LAUNCHES * (int64_t)sizeof(Counter));
  if (c) c->arrived = (_Atomic int32_t *)(f->arena + at);
  at += align64(f->num_threads * SPLIT_BELOW * (int64_t)sizeof *c->arrived);
  if (c) c->scratch = f->arena + at;
  return at + align64(f->num_threads * (int64_t)SCRATCH_BYTES);
}

static void run_launches(Ctx *c, const Launch *launches, int thread) {
  double *const profile = thread == 0 ? c->profile : NULL;
  double start = profile ? seconds() : 0.0;
  const int last = c->last;
  for (int i = c->first; i < last; ++i) {
    const Launch *l = &launches[i];
    l->run(c, l, thread);
    const int skip = (l->sync == SYNC_IF_SHARED && replicated(launch_rows(c, l))) || (l->sync == SYNC_IF_PREFILL && c->decode_only);
    if (!skip || i == last - 1) barrier_wait(&c->pool, thread);
    if (profile) {
      const double end = seconds();
      profile[i] += end - start;
      start = end;
    }
  }
}

static void run_step(Ctx *c) {
  const FerrumStep *s = c->step;
  c->num_tiles = 0;
  c->decode_only = s->num_tokens == s->num_seqs;
  for (int seq = 0; seq < s->num_seqs; ++seq)
    for (int t = s->query_start[seq]; t < s->query_start[seq + 1]; t += TILE_TOKENS)
      c->tiles[c->num_tiles++] = (QueryTile){seq, t, min_int(TILE_TOKENS, s->query_start[seq + 1] - t)};
  for (int i = 0; i < NUM_LAUNCHES; ++i) atomic_store_explicit(&c->counters[i].next, 0, memory_order_relaxed);
  memset(c->arrived, 0, (size_t)c->pool.threads * SPLIT_BELOW * sizeof *c->arrived);
  /* Of a step in parts no thread may miss any: it would lack the private rows of a part before. */
  pool_run(&c->pool, c->first > 0 || c->last < NUM_LAUNCHES);
}

/* 0 or an errno value. The arena and the KV memory belong to the caller. */
static int open_context(const FerrumConfig *config, FerrumStep *step, void (*work)(void *, int), void **handle) {
  Ctx *c = NULL;
  if (posix_memalign((void **)&c, CACHE_LINE, sizeof *c)) return ENOMEM;
  memset(c, 0, sizeof *c);
  c->config = *config;
  c->step = step;
  c->last = NUM_LAUNCHES;
  arena_layout(config, c);
  const int error = pool_start(&c->pool, config->num_threads, config->cpus, config->spin, work, c);
  if (error) {
    free(c);
    return error;
  }
  *handle = c;
  return 0;
}

static void close_context(Ctx *c) {
  pool_stop(&c->pool, c->pool.threads);
  free(c);
}
