/* What the runtime hands to a step, field by field as ferrum/devices/cpu.py writes it. */
#include <stdint.h>
#include <stddef.h>

#define FERRUM_ABI 6
#define MAX_LOGPROBS {{ max_logprobs }}

/* The blocks of one group of states. */
typedef struct {
  uint8_t *kv;
  int64_t num_blocks;
} FerrumPool;

typedef struct {
  const uint8_t *weights;
  uint8_t *arena;
  const int32_t *cpus; /* one per thread, -1 leaves the thread unpinned */
  int32_t max_tokens, max_seqs, max_samples, max_blocks_per_seq;
  int32_t num_threads, spin;
  FerrumPool pools[NUM_POOLS];
} FerrumConfig;

typedef struct {
  int32_t num_tokens, num_seqs, num_samples, unused;
{%- for type, names in step_fields %}
  {{ type }} *{{ names | join(", *") }};
{%- endfor %}
} FerrumStep;
