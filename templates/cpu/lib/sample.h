/* Sampling on the device. Order: mask, bias, penalties, greedy or temperature, top-k, top-p, min-p, inverse CDF.
   The random number of a draw depends only on (seed, draw), so batching never changes a result. */

/* A smaller temperature is greedy: logits divided by it would leave float32's range. */
#define GREEDY_BELOW 1e-5f

/* Philox4x32-10 (Salmon et al., 2011): first word for key = seed, counter = (draw, 0). */
static uint32_t philox(uint64_t seed, uint64_t draw) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  uint32_t x0 = (uint32_t)draw, x1 = (uint32_t)(draw >> 32), x2 = 0, x3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = (uint64_t)0xD2511F53u * x0, b = (uint64_t)0xCD9E8D57u * x2;
    const uint32_t y0 = (uint32_t)(b >> 32) ^ x1 ^ k0, y2 = (uint32_t)(a >> 32) ^ x3 ^ k1;
    x1 = (uint32_t)b;
    x3 = (uint32_t)a;
    x0 = y0;
    x2 = y2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return x0;
}

typedef struct {
  float logit;
  int32_t id;
} Candidate;

INLINE int before(Candidate a, Candidate b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

static void sift_down(Candidate *h, int n, int i) {
  const Candidate x = h[i];
  for (int child; (child = 2 * i + 1) < n; i = child) {
    if (child + 1 < n && before(h[child + 1], h[child])) ++child;
    if (!before(h[child], x)) break;
    h[i] = h[child];
  }
  h[i] = x;
}

/* The first of the largest: found block by block, so that only one block is looked through for it. */
static int arg_max(const float *x) {
  enum { BLOCK = 2048 };
  float top = -INFINITY;
  int from = 0;
  for (int at = 0; at < VOCAB_SIZE; at += BLOCK) {
    const int end = min_int(VOCAB_SIZE, at + BLOCK);
    float here = x[at];
    _Pragma("omp simd reduction(max : here)")
    for (int i = at; i < end; ++i) here = x[i] > here ? x[i] : here;
    if (here > top) {
      top = here;
      from = at;
    }
  }
  for (int i = from; i < VOCAB_SIZE; ++i)
    if (x[i] == top) return i;
  return 0;
}

/* The raw logits changed as the request asks. */
static void adjust(const FerrumStep *s, int row, float *x) {
  if (s->use_mask[row]) {
    const uint32_t *mask = s->mask + (size_t)row * ((VOCAB_SIZE + 31) / 32);
    for (int from = 0; from < VOCAB_SIZE; from += 32) {
      const uint32_t word = mask[from / 32];
      if (word == UINT32_MAX) continue; /* within a text nearly all words are */
      const int end = min_int(VOCAB_SIZE - from, 32);
      for (int i = 0; i < end; ++i) x[from + i] = word >> i & 1 ? x[from + i] : -INFINITY;
    }
  }
  for (int i = s->bias_start[row]; i < s->bias_start[row + 1]; ++i) x[s->bias_token[i]] += s->bias_value[i];
  for (int i = s->penalty_start[row]; i < s->penalty_start[row + 1]; ++i) {
    const int id = s->penalty_token[i], count = s->penalty_count[i];
    x[id] = x[id] > 0.0f ? x[id] / s->repetition_penalty[row] : x[id] * s->repetition_penalty[row];
    x[id] -= (count > 0 ? s->presence_penalty[row] : 0.0f) + s->frequency_penalty[row] * (float)count;
  }
}

/* Among candidates that may survive top-k and top-p: take them best first until a limit is met, then draw. */
static int draw_sorted(const FerrumStep *s, int row, const float *y, float top, double u, Candidate *heap) {
  enum { BINS = 1024 };
  int32_t counts[BINS] = {0};
  double mass[BINS] = {0}, total = 0.0;
  const int limit_k = s->top_k[row] > 0 ? min_int(s->top_k[row], VOCAB_SIZE) : VOCAB_SIZE;
  const float limit_p = s->top_p[row], floor_p = s->min_p[row];
  for (int i = 0; i < VOCAB_SIZE; ++i) {
    const float gap = (top - y[i]) * 40.0f;
    const int bin = gap < BINS - 1 ? (int)gap : BINS - 1;
    const double w = fast_exp(y[i] - top);
    counts[bin]++;
    mass[bin] += w;
    total += w;
  }
  int cut = 0, kept = counts[0];
  double kept_mass = mass[0];
  /* with top-k, top-p is a share of the mass of those k: all of them are needed */
  const int all_k = limit_k < VOCAB_SIZE;
  while (cut < BINS - 1 && kept < limit_k && (all_k || kept_mass < (double)limit_p * total)) kept += counts[++cut], kept_mass += mass[cut];
  if (cut < BINS - 1) ++cut; /* one more: rounding at the border */
  int n = 0;
  for (int i = 0; i < VOCAB_SIZE; ++i)
    if ((top - y[i]) * 40.0f < (float)(cut + 1) || cut == BINS - 1) heap[n++] = (Candidate){y[i], i};
  for (int i = n / 2 - 1; i >= 0; --i) sift_down(heap, n, i);
  /* the mass that top-p is a share of: what top-k leaves */
  Candidate *sorted = heap + n; /* grows downwards from the heap's end as the heap shrinks */
  int taken = 0;
  double top_k_mass = 0.0, budget = limit_k < VOCAB_SIZE ? -1.0 : (double)limit_p * total, sum = 0.0;
  while (taken < limit_k && n > 0) {
    const Candidate best = heap[0];
    heap[0] = heap[--n];
    if (n) sift_down(heap, n, 0);
    sorted[-1 - taken++] = best;
    top_k_mass += fast_exp(best.logit - top);
    if (budget >= 0.0 && top_k_mass >= budget) break;
  }
  if (budget < 0.0) budget = (double)limit_p * top_k_mass;
  int keep = 0;
  while (keep < taken) {
    const double w = fast_exp(sorted[-1 - keep].logit - top);
    if (keep && w < floor_p) break;
    sum += w;
    ++keep;
    if (sum >= budget) break;
  }
  double r = u * sum;
  for (int i = 0; i < keep; ++i) {
    r -= fast_exp(sorted[-1 - i].logit - top);
    if (r < 0.0) return sorted[-1 - i].id;
  }
  return sorted[-keep].id;
}

static int draw_token(const FerrumStep *s, int row, float *x, Candidate *heap) {
  float top = -INFINITY;
  const float temperature = s->temperature[row];
  const double u = (double)(philox(s->seed[row], s->draw[row]) >> 8) * 0x1p-24;
  for (int i = 0; i < VOCAB_SIZE; ++i) {
    x[i] /= temperature;
    top = x[i] > top ? x[i] : top;
  }
  if (s->top_k[row] > 0 || s->top_p[row] < 1.0f || s->min_p[row] > 0.0f) return draw_sorted(s, row, x, top, u, heap);
  double total = 0.0;
  int last = 0;
  for (int i = 0; i < VOCAB_SIZE; ++i) total += x[i] = fast_exp(x[i] - top);
  double r = u * total;
  for (int i = 0; i < VOCAB_SIZE; ++i) {
    if (x[i] > 0.0f) last = i;
    r -= x[i];
    if (r < 0.0) return i;
  }
  return last;
}

/* Log-probabilities of the raw distribution: of the chosen token, and of the best `count`. */
static void log_probabilities(const FerrumStep *s, int row, const float *x, int token, int count) {
  float top = x[0];
  double total = 0.0;
  _Pragma("omp simd reduction(max : top)")
  for (int i = 1; i < VOCAB_SIZE; ++i) top = x[i] > top ? x[i] : top;
  _Pragma("omp simd reduction(+ : total)")
  for (int i = 0; i < VOCAB_SIZE; ++i) total += fast_exp(x[i] - top);
  const float norm = top + (float)log(total);
  s->out_logprob[row] = x[token] - norm;
  Candidate best[MAX_LOGPROBS];
  int n = 0;
  for (int i = 0; i < VOCAB_SIZE && count > 0; ++i) {
    const Candidate x_i = {x[i], i};
    if (n == count && !before(x_i, best[n - 1])) continue;
    int at = n < count ? n++ : n - 1;
    for (; at > 0 && before(x_i, best[at - 1]); --at) best[at] = best[at - 1];
    best[at] = x_i;
  }
  for (int i = 0; i < n; ++i) {
    s->top_token[row * MAX_LOGPROBS + i] = best[i].id;
    s->top_logprob[row * MAX_LOGPROBS + i] = best[i].logit - norm;
  }
}
