/* Runs a generated step without Python: run_step WEIGHTS COUNT CHUNK BYTES_PER_BLOCK prints the logits of COUNT tokens.
   Appended to the step's source, so that another architecture's code can run as a program under an emulator. */
#include <stdio.h>

static int32_t tokens[64], positions[64], query_start[2], context_len[1], table[64], rows[64], none[65], minus[64], out[64], top[64 * 20];
static float zero[64], one[64], logprob[64], top_logprob[64 * 20];
static uint64_t seed[64];
static uint32_t mask[64 * VOCAB_SIZE];

static uint8_t *read_file(const char *path) {
  FILE *f = fopen(path, "rb");
  fseek(f, 0, SEEK_END);
  long n = ftell(f);
  rewind(f);
  uint8_t *data = aligned_alloc(64, (size_t)(n + 127) / 64 * 64);
  if (fread(data, 1, (size_t)n, f) != (size_t)n) exit(2);
  fclose(f);
  return data;
}

int main(int argc, char **argv) {
  if (argc != 5) return 1;
  const int count = atoi(argv[2]), chunk = atoi(argv[3]);
  const int32_t cpus[2] = {-1, -1};
  FerrumConfig c = {.weights = read_file(argv[1]), .cpus = cpus, .num_blocks = 8, .max_tokens = 64, .max_seqs = 1};
  c.max_samples = 64;
  c.max_blocks_per_seq = 8;
  c.num_threads = 2;
  c.kv = calloc(8, (size_t)atol(argv[4]));
  c.arena = aligned_alloc(64, (size_t)ferrum_arena_bytes(&c));
  for (int i = 0; i < 64; ++i) minus[i] = -1, one[i] = 1.0f, table[i] = 7 - i;
  FerrumStep s = {.num_seqs = 1, .tokens = tokens, .positions = positions, .query_start = query_start, .context_len = context_len,
                  .block_table = table, .sample_rows = rows, .temperature = zero, .top_k = none, .top_p = one, .min_p = zero,
                  .repetition_penalty = one, .presence_penalty = zero, .frequency_penalty = zero, .seed = seed, .draw = seed,
                  .num_logprobs = minus, .penalty_start = none, .penalty_token = none, .penalty_count = none, .bias_start = none,
                  .bias_token = none, .bias_value = zero, .use_mask = none, .mask = mask, .out_token = out, .out_logprob = logprob,
                  .top_token = top, .top_logprob = top_logprob};
  void *handle;
  if (ferrum_open(&c, &s, &handle)) return 3;
  for (int at = 0; at < count; at += chunk) {
    const int now = count - at < chunk ? count - at : chunk;
    for (int i = 0; i < now; ++i) tokens[i] = (at + i) * 7 % VOCAB_SIZE, positions[i] = at + i, rows[i] = i;
    s.num_tokens = s.num_samples = query_start[1] = now;
    context_len[0] = at + now;
    ferrum_step(handle);
    fwrite(ferrum_logits(handle), 4, (size_t)now * VOCAB_SIZE, stdout);
  }
  ferrum_close(handle);
  return 0;
}
