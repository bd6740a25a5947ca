/* Sampling by one threadgroup. Order: mask, bias, penalties, greedy or temperature, top-k, top-p, min-p, inverse CDF; the same as on
   the CPU. The random number of a draw depends only on (seed, draw), so batching never changes a result.

   A logit's probability relative to the largest is a whole number, its mass: 2^40 for the largest. Sums of masses do not
   depend on the order of addition, so any number of threads may add them up. */

/* A smaller temperature is greedy: logits divided by it would leave float32's range. */
#define GREEDY_BELOW 1e-5f
#define ONE_MASS 1099511627776.0f
#define BINS 256

/* Called from several places: one copy of the code, and loops over the vocabulary that are not unrolled. */
#define OUTLINE static __attribute__((noinline))

typedef struct {
  float value;
  int id;
} Peak;

/* A logit's place in descending order: its key, how many equal ones come before it, masses up to and with it. */
typedef struct {
  u32 key, tie;
  u64 mass;
} Place;

/* Masses that threads add up are two words: there is no addition of 64 bits that several may do at once. */
typedef struct {
  u64 mass[BINS], before_mass, total;
  atomic_uint low[BINS], high[BINS], counts[BINS];
  u32 before_count, prefix, equal;
  u64 warp_mass[32];
  float warp_value[32];
  int warp_id[32], drawn;
  atomic_int chosen, filled;
  float found_value[MAX_LOGPROBS];
  int found_id[MAX_LOGPROBS];
} SampleShared;

#define BARRIER() threadgroup_barrier(mem_flags::mem_threadgroup)
#define LOAD(place) atomic_load_explicit(&(place), memory_order_relaxed)
#define STORE(place, value) atomic_store_explicit(&(place), value, memory_order_relaxed)
#define ADD(place, value) atomic_fetch_add_explicit(&(place), value, memory_order_relaxed)

/* The sum of the words is exact whatever the order: every wrap of the lower one is carried once. */
INLINE void add_mass(threadgroup SampleShared *s, int bin, u64 mass) {
  const u32 low = (u32)mass, before = ADD(s->low[bin], low), high = (u32)(mass >> 32) + (before + low < before ? 1u : 0u);
  if (high) ADD(s->high[bin], high);
}

INLINE u64 mass_in(threadgroup SampleShared *s, int bin) { return (u64)LOAD(s->high[bin]) << 32 | LOAD(s->low[bin]); }

/* Sum over the SIMD group; its shuffles know no numbers of 64 bits. */
INLINE u64 group_mass(u64 x) {
  for (u16 i = 16; i; i >>= 1) x += (u64)simd_shuffle_xor((u32)(x >> 32), i) << 32 | simd_shuffle_xor((u32)x, i);
  return x;
}

/* A share below 1 of a mass, rounded up and at least 1; a float is a whole number of 24 bits and a power of two. */
INLINE u64 share_of(u64 mass, float share) {
  if (share <= 0.0f) return 1;
  const u32 bits = as_type<u32>(share);
  const u64 digits = (bits & 0x7fffff) | (bits >> 23 ? 0x800000 : 0);
  const u32 shift = 150 - max(bits >> 23, 1u);
  const u64 low = (mass & 0xffffffff) * digits, high = (mass >> 32) * digits + (low >> 32), rest = low & 0xffffffff;
  if (shift >= 96) return 1;
  const u64 whole = shift < 32 ? high << (32 - shift) | rest >> shift : high >> (shift - 32);
  const u64 left = shift < 32 ? rest & ((1ul << shift) - 1) : rest | (high & ((1ul << (shift - 32)) - 1));
  return max(whole + (left ? 1ul : 0ul), 1ul);
}

/* Philox4x32-10 (Salmon et al., 2011): first word for key = seed, counter = (draw, 0). */
INLINE u32 philox(u64 seed, u64 draw) {
  u32 k0 = (u32)seed, k1 = (u32)(seed >> 32), x0 = (u32)draw, x1 = (u32)(draw >> 32), x2 = 0, x3 = 0;
  for (int round = 0; round < 10; ++round) {
    const u64 a = (u64)0xD2511F53u * x0, b = (u64)0xCD9E8D57u * x2;
    const u32 y0 = (u32)(b >> 32) ^ x1 ^ k0, y2 = (u32)(a >> 32) ^ x3 ^ k1;
    x1 = (u32)b;
    x3 = (u32)a;
    x0 = y0;
    x2 = y2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return x0;
}

/* Whole numbers in the order of the floats; both zeros are the same. */
INLINE u32 key_of(float y) {
  const u32 bits = as_type<u32>(y + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

INLINE u64 mass_of(float y, float top) { return (u64)(fast_exp(y - top) * ONE_MASS); }

INLINE int better(float value, int id, Peak than) { return value > than.value || (value == than.value && id < than.id); }

/* The largest of x / degree and the first place where it is. */
OUTLINE Peak block_peak(threadgroup SampleShared *s, device const float *x, float degree, int thread_index) {
  Peak best = {minus_infinity(), VOCAB_SIZE};
  for (int i = thread_index; i < VOCAB_SIZE; i += SAMPLE_THREADS)
    if (better(x[i], i, best)) best.value = x[i], best.id = i;
  for (u16 i = 16; i; i >>= 1) {
    const float value = simd_shuffle_xor(best.value, i);
    const int id = simd_shuffle_xor(best.id, i);
    if (better(value, id, best)) best.value = value, best.id = id;
  }
  BARRIER();
  if (thread_index % 32 == 0) s->warp_value[thread_index / 32] = best.value, s->warp_id[thread_index / 32] = best.id;
  BARRIER();
  for (int i = 0; i < SAMPLE_THREADS / 32; ++i)
    if (better(s->warp_value[i], s->warp_id[i], best)) best.value = s->warp_value[i], best.id = s->warp_id[i];
  if (best.id >= VOCAB_SIZE) best.id = 0; /* every logit is -infinity or not a number */
  best.value /= degree;
  return best;
}

OUTLINE u64 block_sum(threadgroup SampleShared *s, u64 x, int thread_index) {
  x = group_mass(x);
  BARRIER();
  if (thread_index % 32 == 0) s->warp_mass[thread_index / 32] = x;
  BARRIER();
  u64 sum = 0;
  for (int i = 0; i < SAMPLE_THREADS / 32; ++i) sum += s->warp_mass[i];
  return sum;
}

/* Sum of e^(x - top). */
OUTLINE float block_total(threadgroup SampleShared *s, device const float *x, float top, int thread_index) {
  u64 sum = 0;
  for (int i = thread_index; i < VOCAB_SIZE; i += SAMPLE_THREADS) sum += mass_of(x[i], top);
  return (float)block_sum(s, sum, thread_index) / ONE_MASS;
}

/* The place where, in descending order, the masses reach `target`, or (by_count) the place of rank `target`. */
OUTLINE Place block_select(threadgroup SampleShared *s, device const float *x, float degree, float top, int by_count, u64 target, int thread_index) {
  if (thread_index == 0) s->prefix = 0, s->before_mass = 0, s->before_count = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    BARRIER();
    for (int i = thread_index; i < BINS; i += SAMPLE_THREADS) {
      STORE(s->low[i], 0u);
      STORE(s->high[i], 0u);
      STORE(s->counts[i], 0u);
    }
    BARRIER();
    const u32 prefix = s->prefix;
    for (int i = thread_index; i < VOCAB_SIZE; i += SAMPLE_THREADS) {
      const float y = x[i] / degree;
      const u32 key = key_of(y);
      if (shift < 24 && (key >> (shift + 8)) != prefix >> (shift + 8)) continue;
      const int bin = BINS - 1 - (key >> shift & (BINS - 1));
      ADD(s->counts[bin], 1u);
      add_mass(s, bin, mass_of(y, top));
    }
    BARRIER();
    if (thread_index == 0) {
      u64 mass = s->before_mass;
      u32 count = s->before_count;
      int bin = 0, last = 0;
      for (; bin < BINS; ++bin) {
        if (LOAD(s->counts[bin]) == 0) continue;
        last = bin;
        if (by_count ? count + LOAD(s->counts[bin]) > target : mass + mass_in(s, bin) >= target) break;
        mass += mass_in(s, bin);
        count += LOAD(s->counts[bin]);
      }
      if (bin == BINS) { /* less is there than was asked for: the last of all */
        bin = last;
        mass -= mass_in(s, bin);
        count -= LOAD(s->counts[bin]);
      }
      s->before_mass = mass;
      s->before_count = count;
      s->prefix = prefix | (u32)(BINS - 1 - bin) << shift;
      s->total = mass_in(s, bin);
      s->equal = LOAD(s->counts[bin]);
    }
  }
  BARRIER();
  const u64 equal = (u64)s->equal, each = s->total / equal;
  Place place = {s->prefix, 0, 0};
  if (by_count) place.tie = (u32)(target - s->before_count);
  else if (each && target > s->before_mass) place.tie = (u32)((target - s->before_mass - 1) / each);
  if (place.tie >= equal) place.tie = (u32)equal - 1;
  place.mass = s->before_mass + each * (place.tie + 1);
  return place;
}

/* The id of the `tie`-th logit, from 0, with this key. */
OUTLINE int block_find(threadgroup SampleShared *s, device const float *x, float degree, u32 key, u32 tie, int thread_index) {
  int last = -1;
  for (u32 round = 0; round <= tie; ++round) {
    BARRIER();
    if (thread_index == 0) STORE(s->chosen, VOCAB_SIZE);
    BARRIER();
    for (int i = thread_index; i < VOCAB_SIZE; i += SAMPLE_THREADS)
      if (i > last && key_of(x[i] / degree) == key) {
        atomic_fetch_min_explicit(&s->chosen, i, memory_order_relaxed);
        break;
      }
    BARRIER();
    last = LOAD(s->chosen);
  }
  return last < VOCAB_SIZE ? last : 0;
}

/* random / 2^24 of a mass, and one more: the mass that a draw has to reach. */
INLINE u64 drawn_mass(u64 mass, u32 random) { return (u64)random * (mass >> 24) + ((u64)random * (mass & 0xffffff) >> 24) + 1; }

/* Among all tokens, in the order of their ids. */
OUTLINE int draw_plain(threadgroup SampleShared *s, device const float *x, float degree, float top, u32 random, int thread_index) {
  const int warp = thread_index / 32, lane = thread_index % 32, run = (VOCAB_SIZE + BINS - 1) / BINS;
  BARRIER();
  for (int bin = warp; bin < BINS; bin += SAMPLE_THREADS / 32) {
    u64 sum = 0;
    for (int i = bin * run + lane; i < min_int((bin + 1) * run, VOCAB_SIZE); i += 32) sum += mass_of(x[i] / degree, top);
    sum = group_mass(sum);
    if (lane == 0) s->mass[bin] = sum;
  }
  BARRIER();
  if (thread_index == 0) {
    u64 total = 0, before = 0;
    for (int bin = 0; bin < BINS; ++bin) total += s->mass[bin];
    const u64 target = drawn_mass(total, random);
    int bin = 0;
    while (bin < BINS - 1 && before + s->mass[bin] < target) before += s->mass[bin++];
    s->drawn = VOCAB_SIZE - 1;
    for (int i = bin * run; i < min_int((bin + 1) * run, VOCAB_SIZE); ++i) {
      before += mass_of(x[i] / degree, top);
      if (before >= target) {
        s->drawn = i;
        break;
      }
    }
  }
  BARRIER();
  return s->drawn;
}

/* Among those that top-k, top-p and min-p leave, in descending order. top-p is a share of what top-k leaves. */
OUTLINE int draw_limited(threadgroup SampleShared *s, device const float *x, float degree, float top, u32 random, int limit_k, float limit_p, float floor_p, int thread_index) {
  u64 mass = 0, floor_mass = 0;
  for (int i = thread_index; i < VOCAB_SIZE; i += SAMPLE_THREADS) {
    const u64 own = mass_of(x[i] / degree, top);
    mass += own;
    if (fast_exp(x[i] / degree - top) >= floor_p) floor_mass += own;
  }
  mass = block_sum(s, mass, thread_index);
  floor_mass = block_sum(s, floor_mass, thread_index);
  if (limit_k > 0 && limit_k < VOCAB_SIZE) mass = block_select(s, x, degree, top, 1, (u64)(limit_k - 1), thread_index).mass;
  if (limit_p < 1.0f) {
    const u64 budget = share_of(mass, limit_p);
    mass = block_select(s, x, degree, top, 0, budget, thread_index).mass;
  }
  if (floor_p > 0.0f && floor_mass < mass) mass = floor_mass;
  if (mass < (u64)ONE_MASS) mass = (u64)ONE_MASS; /* the first is always kept */
  const Place place = block_select(s, x, degree, top, 0, drawn_mass(mass, random), thread_index);
  return block_find(s, x, degree, place.key, place.tie, thread_index);
}

/* The `count` best tokens in descending order, and their log-probabilities. */
OUTLINE void best_tokens(threadgroup SampleShared *s, device const float *x, float top, float norm, int count, device int *tokens, device float *logprobs, int thread_index) {
  count = min_int(count, VOCAB_SIZE);
  const Place last = block_select(s, x, 1.0f, top, 1, (u64)(count - 1), thread_index);
  BARRIER();
  if (thread_index == 0) STORE(s->filled, 0);
  BARRIER();
  for (int i = thread_index; i < VOCAB_SIZE; i += SAMPLE_THREADS)
    if (key_of(x[i]) > last.key) {
      const int at = ADD(s->filled, 1);
      s->found_value[at] = x[i];
      s->found_id[at] = i;
    }
  for (u32 tie = 0; tie <= last.tie; ++tie) {
    const int id = block_find(s, x, 1.0f, last.key, tie, thread_index);
    if (thread_index == 0) {
      const int at = ADD(s->filled, 1);
      s->found_value[at] = x[id];
      s->found_id[at] = id;
    }
  }
  BARRIER();
  if (thread_index) return;
  for (int i = 0; i < count; ++i) {
    Peak best = {s->found_value[i], s->found_id[i]};
    int from = i;
    for (int j = i + 1; j < count; ++j)
      if (better(s->found_value[j], s->found_id[j], best)) best.value = s->found_value[j], best.id = s->found_id[j], from = j;
    s->found_value[from] = s->found_value[i];
    s->found_id[from] = s->found_id[i];
    tokens[i] = best.id;
    logprobs[i] = best.value - norm;
  }
}
