"""From a plan to the arrays of a step. Writes in place; allocates no arrays."""

from __future__ import annotations

from ferrum.devices.base import StepBuffers
from ferrum.engine.scheduler import Planned
from ferrum.engine.sequence import Sequence


def fill_step(buffers: StepBuffers, plan: list[Planned]) -> None:
    """Describe ``plan`` in ``buffers``: row s of the tables is ``plan[s]``, sampled rows are in the same order."""
    at = 0
    row = 0
    buffers.penalty_start[0] = buffers.bias_start[0] = 0
    for s, (sequence, num_tokens, samples) in enumerate(plan):
        start = sequence.num_computed
        end = start + num_tokens
        if num_tokens == 1:
            buffers.tokens[at] = sequence.tokens[start]
            buffers.positions[at] = start
        else:
            buffers.tokens[at : at + num_tokens] = sequence.tokens[start:end]
            buffers.positions[at : at + num_tokens] = range(start, end)
        buffers.query_start[s] = at
        buffers.context_len[s] = end
        buffers.block_table[s, : len(sequence.blocks)] = sequence.blocks
        at += num_tokens
        if samples:
            buffers.sample_rows[row] = at - 1
            _fill_row(buffers, row, sequence)
            row += 1
    buffers.query_start[len(plan)] = at
    buffers.num_tokens = at
    buffers.num_seqs = len(plan)
    buffers.num_samples = row


def _fill_row(buffers: StepBuffers, row: int, sequence: Sequence) -> None:
    params = sequence.params
    buffers.temperature[row] = 0.0 if params.greedy else params.temperature
    buffers.top_k[row] = max(params.top_k, 0)
    buffers.top_p[row] = params.top_p
    buffers.min_p[row] = params.min_p
    buffers.repetition_penalty[row] = params.repetition_penalty
    buffers.presence_penalty[row] = params.presence_penalty
    buffers.frequency_penalty[row] = params.frequency_penalty
    buffers.seed[row] = sequence.seed
    buffers.draw[row] = sequence.num_output
    buffers.num_logprobs[row] = -1 if params.logprobs is None else params.logprobs
    begin = int(buffers.penalty_start[row])
    end = begin + len(sequence.counts.tokens)
    if end > begin:
        buffers.penalty_token[begin:end] = sequence.counts.tokens
        buffers.penalty_count[begin:end] = sequence.counts.count
    buffers.penalty_start[row + 1] = end
    buffers.bias_start[row + 1] = sequence.fill_bias(buffers.bias_token, buffers.bias_value, int(buffers.bias_start[row]))
    buffers.use_mask[row] = 0
    if sequence.mask is not None:
        buffers.use_mask[row] = 1
        sequence.mask.fill(buffers.mask[row])
