// Attention over the paged cache.
//
// A block holds 16 tokens of all key-value heads of a layer:
//
//   keys    [head][dim][16 tokens]   transposed, so that 16 scores are one vector and need no sum across lanes
//   values  [head][16 tokens][dim]
//
// Block 0 is the null block: zeros, read where a group of blocks is not full, never written.
//
// Keys are read in groups of 64 and runs of 256, both counted from the beginning of the sequence. Within a run the
// softmax is carried along; runs are merged in order. Whether a run has a thread of its own, and how many queries share
// a reading, changes nothing in any query's arithmetic: the same token gives the same bits in every batch.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"
#include "pool.h"

namespace dedicate {

constexpr int kBlockTokens = 16;
constexpr int kGroupKeys = 64;
constexpr int kRunKeys = 256;
constexpr int kMaxQueries = 12;

// The rows of a step. Row i feeds tokens [row_first[i], row_first[i + 1]), the first of them at position row_start[i].
struct Rows {
    int64_t num_rows;
    const int32_t* row_first;
    const int32_t* row_start;
    const int32_t* block_tables;  // (num_rows, table_stride)
    int64_t table_stride;
};

struct AttentionShape {
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;
};

// What one item of work covers: some tokens of one row and some runs of its keys.
struct Tile {
    int32_t row;
    int32_t first_token;  // of the step
    int32_t num_tokens;
    int32_t first_run;
    int32_t last_run;
    int32_t partial;  // where its runs' results wait to be merged; -1 if it covers all runs of its tokens
};

struct Merge {
    int32_t token;
    int32_t first_partial;
    int32_t num_partials;
};

// How a step's attention is cut up; the same for every layer of one shape and window.
struct AttentionPlan {
    std::vector<Tile> tiles;
    std::vector<Merge> merges;
    int32_t num_partials = 0;
    int32_t heads_per_tile = 1;
    int32_t chunks_per_kv_head = 1;
};

struct AttentionCall {
    AttentionShape shape;
    const Rows* rows;
    const AttentionPlan* plan;
    const float* queries;  // (num_tokens, num_heads, head_dim), tokens `query_stride` apart
    int64_t query_stride;
    float* output;  // (num_tokens, num_heads, head_dim), tokens `output_stride` apart
    int64_t output_stride;
    const float* keys;
    const float* values;
    float scaling;
    int32_t window;  // a token sees itself and the `window` - 1 before it; 0 for all
    float* partials;  // plan->num_partials * partial_floats(shape)
};

int64_t partial_floats(const AttentionShape& shape);

void plan_attention(AttentionPlan& plan, const AttentionShape& shape, const Rows& rows, int window, int num_threads);

// Stores one token's keys and values, (num_kv_heads, head_dim) each, in its slot.
void store_token(
    const AttentionShape& shape, int64_t block, int64_t offset, const float* key, const float* value, float* keys,
    float* values);

// To be called by all threads of the pool; the output is there when it returns.
void attend(Pool& pool, const AttentionCall& call);

}  // namespace dedicate
