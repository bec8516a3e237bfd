// From logits to tokens, row by row. What each parameter means is defined by worker/sampler.py and worker/logits.py.
#pragma once

#include <cstdint>

#include "pool.h"

extern "C" {

// A token that a penalty sees: it is in the prompt, or `num_outputs` times in the output, or both.
struct DedicateSeenToken {
    int32_t token_id;
    int32_t num_outputs;
};

// Added to a token's logit; minus infinity bans it.
struct DedicateBias {
    int32_t token_id;
    float bias;
};

struct DedicateSampling {
    double temperature;  // 0 is greedy
    double top_p;        // 1 is off
    double min_p;        // 0 is off
    double repetition_penalty;
    double presence_penalty;
    double frequency_penalty;
    int64_t top_k;  // 0 is off
    uint64_t seed;
    uint64_t output_position;
    const DedicateSeenToken* seen;  // no token twice
    int64_t num_seen;
    const DedicateBias* biases;  // in the order in which they are added
    int64_t num_biases;
};

struct DedicateSampled {
    int64_t token_id;
    int64_t is_broken;  // the logits hold a NaN or no finite maximum; `token_id` is then 0
};

struct DedicateLogprobs {
    int64_t token_id;
    double logprob;         // of `token_id`
    int64_t num_top;        // wanted, at most 512 and the vocabulary's size; then how many there are
    int32_t* top_ids;       // best first, equal ones in ascending order of id
    double* top_logprobs;
};

// Working memory of one thread, in bytes; it must be aligned to 64.
int64_t dedicate_sample_scratch_bytes(int64_t vocab_size);

void dedicate_sample_row(
    const float* logits, int64_t vocab_size, const DedicateSampling* sampling, DedicateSampled* sampled, void* scratch);

// Log-probabilities of `token_id` and of the best `num_top` tokens: natural logarithm, logits as they are.
void dedicate_logprobs_row(const float* logits, int64_t vocab_size, DedicateLogprobs* logprobs, void* scratch);

// All rows, `stride` floats apart; `scratch` has room for every thread of the pool. Null for the pool: the caller works
// alone. `logprobs[row]` is computed, for the token that was sampled, where `wants_logprobs[row]` is not 0.
void dedicate_sample_rows(
    DedicatePool* pool, const float* logits, int64_t num_rows, int64_t stride, int64_t vocab_size,
    const DedicateSampling* samplings, DedicateSampled* sampled, const uint8_t* wants_logprobs,
    DedicateLogprobs* logprobs, void* scratch);

// `dedicate_logprobs_row` for all rows.
void dedicate_logprobs_rows(
    DedicatePool* pool, const float* logits, int64_t num_rows, int64_t stride, int64_t vocab_size,
    DedicateLogprobs* logprobs, void* scratch);
}
