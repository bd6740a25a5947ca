"""From a plan to the arrays of a step. Writes in place; allocates no arrays."""

from __future__ import annotations

from ferrum.devices.base import StepBuffers
from ferrum.engine.scheduler import Planned
from ferrum.engine.sequence import Sequence


def fill_step(buffers: StepBuffers, plan: list[Planned], ahead: bool = False) -> None:
    """Describe ``plan`` in ``buffers``: row s of the tables is ``plan[s]``, sampled rows are in the same order.

    ``ahead``: the plan follows one that is under way and samples for the same sequences. Each has one token, which is not
    known yet and is left out.
    """
    at = 0
    row = 0
    buffers.penalty_start[0] = buffers.bias_start[0] = 0
    for s, (sequence, num_tokens, samples) in enumerate(plan):
        start = len(sequence.tokens) if ahead else sequence.num_computed
        end = start + num_tokens
        if ahead:
            buffers.positions[at] = start
        elif num_tokens == 1:
            buffers.tokens[at] = sequence.tokens[start]
            buffers.positions[at] = start
        else:
            buffers.tokens[at : at + num_tokens] = sequence.tokens[start:end]
            buffers.positions[at : at + num_tokens] = range(start, end)
        buffers.query_start[s] = at
        buffers.context_len[s] = end
        buffers.block_table[s, 0, : len(sequence.blocks)] = sequence.blocks
        at += num_tokens
        if samples:
            buffers.sample_rows[row] = at - 1
            _fill_row(buffers, row, sequence, sequence.num_output + ahead)
            row += 1
    buffers.query_start[len(plan)] = at
    buffers.num_tokens = at
    buffers.num_seqs = len(plan)
    buffers.num_samples = row
    if buffers.limits.groups:
        for s, planned in enumerate(plan):
            for group, table in enumerate(planned.sequence.tables, start=1):
                buffers.block_table[s, group, : len(table)] = table


def _fill_row(buffers: StepBuffers, row: int, sequence: Sequence, draw: int) -> None:
    params = sequence.params
    buffers.temperature[row] = 0.0 if params.greedy else params.temperature
    buffers.top_k[row] = max(params.top_k, 0)
    buffers.top_p[row] = params.top_p
    buffers.min_p[row] = params.min_p
    buffers.repetition_penalty[row] = params.repetition_penalty
    buffers.presence_penalty[row] = params.presence_penalty
    buffers.frequency_penalty[row] = params.frequency_penalty
    buffers.seed[row] = sequence.seed
    buffers.draw[row] = draw
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
