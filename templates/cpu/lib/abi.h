/* What the runtime hands to a step, field by field as ferrum/devices/cpu.py writes it. */
#include <stdint.h>
#include <stddef.h>

#define FERRUM_ABI 4
#define MAX_LOGPROBS 20

typedef struct {
  const uint8_t *weights;
  uint8_t *kv;
  uint8_t *arena;
  const int32_t *cpus; /* one per thread, -1 leaves the thread unpinned */
  int64_t num_blocks;
  int32_t max_tokens, max_seqs, max_samples, max_blocks_per_seq;
  int32_t num_threads, spin;
} FerrumConfig;

typedef struct {
  int32_t num_tokens, num_seqs, num_samples, unused;
  const int32_t *tokens, *positions, *query_start, *context_len, *block_table, *sample_rows;
  const float *temperature;
  const int32_t *top_k;
  const float *top_p, *min_p, *repetition_penalty, *presence_penalty, *frequency_penalty;
  const uint64_t *seed, *draw;
  const int32_t *num_logprobs, *penalty_start, *penalty_token, *penalty_count, *bias_start, *bias_token;
  const float *bias_value;
  const int32_t *use_mask;
  const uint32_t *mask;
  int32_t *out_token;
  float *out_logprob;
  int32_t *top_token;
  float *top_logprob;
} FerrumStep;
