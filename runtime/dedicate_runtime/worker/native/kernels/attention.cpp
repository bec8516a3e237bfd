#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "simd.h"

namespace dedicate {

namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr int kKeyVectors = kGroupKeys / kLanes;
constexpr int kBlockVectors = kBlockTokens / kLanes;
// Sums that are kept in registers at a time.
constexpr int kSums = kLanes == 16 ? 24 : 12;
constexpr int kMaxHeadDim = 256;

// The softmax of some queries as far as they have read: weighted values, largest score, sum of weights.
struct Running {
    float output[kMaxQueries][kMaxHeadDim];
    float most[kMaxQueries];
    float total[kMaxQueries];
};

// scores[r] = queries[r] . keys for 64 keys in 4 blocks; keys: 4 blocks of (head_dim, 16).
template <int kRows>
void score(const float (*queries)[kMaxHeadDim], const float* const* blocks, int head_dim, float (*scores)[kGroupKeys]) {
    constexpr int kWidth = std::max(1, std::min(kKeyVectors, kSums / kRows));
    for (int first = 0; first < kKeyVectors; first += kWidth) {
        Floats sums[kRows][kWidth] = {};
        for (int d = 0; d < head_dim; ++d) {
            Floats keys[kWidth];
            for (int v = 0; v < kWidth; ++v) {
                if (first + v >= kKeyVectors) break;
                const int vector = first + v;
                keys[v] = load(
                    blocks[vector / kBlockVectors] + d * kBlockTokens + vector % kBlockVectors * kLanes);
            }
            for (int r = 0; r < kRows; ++r) {
                const Floats q = broadcast(queries[r][d]);
                for (int v = 0; v < kWidth; ++v) sums[r][v] += q * keys[v];
            }
        }
        for (int r = 0; r < kRows; ++r) {
            for (int v = 0; v < kWidth && first + v < kKeyVectors; ++v) store(&scores[r][(first + v) * kLanes], sums[r][v]);
        }
    }
}

// output[r] = output[r] * decay[r] + weights[r] . values for the first num_keys of 64; values: 4 blocks of (16, head_dim).
template <int kRows>
void collect(
    const float (*weights)[kGroupKeys], const float* const* blocks, int num_keys, int head_dim, const float* decay,
    float (*output)[kMaxHeadDim]) {
    constexpr int kWidth = std::max(1, std::min(4, kSums / kRows));
    const int num_vectors = head_dim / kLanes;
    for (int first = 0; first < num_vectors; first += kWidth) {
        const int width = std::min(kWidth, num_vectors - first);
        Floats sums[kRows][kWidth];
        for (int r = 0; r < kRows; ++r) {
            for (int v = 0; v < kWidth; ++v) {
                sums[r][v] = v < width ? load(&output[r][(first + v) * kLanes]) * broadcast(decay[r]) : Floats{};
            }
        }
        for (int key = 0; key < num_keys; ++key) {
            const float* value = blocks[key / kBlockTokens] + key % kBlockTokens * head_dim + first * kLanes;
            Floats v[kWidth];
            for (int i = 0; i < kWidth; ++i) v[i] = i < width ? load(value + i * kLanes) : Floats{};
            for (int r = 0; r < kRows; ++r) {
                const Floats weight = broadcast(weights[r][key]);
                for (int i = 0; i < kWidth; ++i) sums[r][i] += weight * v[i];
            }
        }
        for (int r = 0; r < kRows; ++r) {
            for (int v = 0; v < width; ++v) store(&output[r][(first + v) * kLanes], sums[r][v]);
        }
    }
}

template <int kRows>
struct Queries {
    static void score_rows(
        int rows, const float (*queries)[kMaxHeadDim], const float* const* blocks, int head_dim,
        float (*scores)[kGroupKeys]) {
        if (rows == kRows) {
            score<kRows>(queries, blocks, head_dim, scores);
        } else {
            Queries<kRows - 1>::score_rows(rows, queries, blocks, head_dim, scores);
        }
    }
    static void collect_rows(
        int rows, const float (*weights)[kGroupKeys], const float* const* blocks, int num_keys, int head_dim,
        const float* decay, float (*output)[kMaxHeadDim]) {
        if (rows == kRows) {
            collect<kRows>(weights, blocks, num_keys, head_dim, decay, output);
        } else {
            Queries<kRows - 1>::collect_rows(rows, weights, blocks, num_keys, head_dim, decay, output);
        }
    }
};
template <>
struct Queries<0> {
    static void score_rows(int, const float (*)[kMaxHeadDim], const float* const*, int, float (*)[kGroupKeys]) {}
    static void collect_rows(
        int, const float (*)[kGroupKeys], const float* const*, int, int, const float*, float (*)[kMaxHeadDim]) {}
};

// Turns 64 scores into weights and moves the running softmax on. Returns what the output so far is to be scaled by.
float weigh(float* scores, int first_visible, int num_visible, float& most, float& total) {
    for (int key = 0; key < first_visible; ++key) scores[key] = kNothing;
    for (int key = num_visible; key < kGroupKeys; ++key) scores[key] = kNothing;
    Floats largest = load(scores);
    for (int v = 1; v < kKeyVectors; ++v) largest = maximum(largest, load(scores + v * kLanes));
    const float new_most = std::max(most, maximum_of(largest));
    if (new_most == kNothing) {
        for (int key = 0; key < kGroupKeys; ++key) scores[key] = 0.0f;
        return 1.0f;
    }
    const float decay = exponential(broadcast(most - new_most))[0];
    Floats sum = {};
    for (int v = 0; v < kKeyVectors; ++v) {
        const Floats weights = exponential(load(scores + v * kLanes) - broadcast(new_most));
        store(scores + v * kLanes, weights);
        sum += weights;
    }
    total = total * decay + sum_of(sum);
    most = new_most;
    return decay;
}

struct TileView {
    int32_t first_position;  // of the tile's first token
    int32_t num_tokens;
    int32_t num_heads;  // query heads of the tile; its queries are (token, head)
    int32_t kv_head;
    const int32_t* block_table;
};

void begin(Running& running, int num_queries, int head_dim) {
    for (int r = 0; r < num_queries; ++r) {
        running.most[r] = kNothing;
        running.total[r] = 0.0f;
        std::fill_n(running.output[r], head_dim, 0.0f);
    }
}

void read_run(
    const AttentionCall& call, const TileView& tile, const float (*queries)[kMaxHeadDim], int run, Running& running) {
    const int head_dim = call.shape.head_dim;
    const int64_t head_floats = static_cast<int64_t>(head_dim) * kBlockTokens;
    const int64_t block_floats = head_floats * call.shape.num_kv_heads;
    const int num_queries = tile.num_tokens * tile.num_heads;
    const int last_position = tile.first_position + tile.num_tokens - 1;
    const int end = std::min((run + 1) * kRunKeys, last_position + 1);
    const int oldest = call.window ? std::max(0, tile.first_position - call.window + 1) : 0;
    begin(running, num_queries, head_dim);
    alignas(64) float scores[kMaxQueries][kGroupKeys];
    float decay[kMaxQueries];
    for (int first = run * kRunKeys; first < end; first += kGroupKeys) {
        if (first + kGroupKeys <= oldest) continue;
        const float* keys[kGroupKeys / kBlockTokens];
        const float* values[kGroupKeys / kBlockTokens];
        for (int i = 0; i < kGroupKeys / kBlockTokens; ++i) {
            const int position = first + i * kBlockTokens;
            const int64_t block = position < end ? tile.block_table[position / kBlockTokens] : 0;
            keys[i] = call.keys + block * block_floats + tile.kv_head * head_floats;
            values[i] = call.values + block * block_floats + tile.kv_head * head_floats;
        }
        Queries<kMaxQueries>::score_rows(num_queries, queries, keys, head_dim, scores);
        for (int r = 0; r < num_queries; ++r) {
            const int position = tile.first_position + r / tile.num_heads;
            const int num_visible = std::clamp(position + 1 - first, 0, kGroupKeys);
            const int first_visible = call.window ? std::clamp(position - call.window + 1 - first, 0, num_visible) : 0;
            decay[r] = weigh(scores[r], first_visible, num_visible, running.most[r], running.total[r]);
        }
        const int num_keys = std::min(kGroupKeys, end - first);
        Queries<kMaxQueries>::collect_rows(
            num_queries, scores, values, num_keys, head_dim, decay, running.output);
    }
}

// Adds a later run's result for one query to those before it.
void merge(float* output, float& most, float& total, const float* other, float other_most, float other_total, int head_dim) {
    const float new_most = std::max(most, other_most);
    if (new_most == kNothing) return;
    const float mine = exponential(broadcast(most - new_most))[0];
    const float theirs = exponential(broadcast(other_most - new_most))[0];
    for (int d = 0; d < head_dim; d += kLanes) {
        store(output + d, load(output + d) * broadcast(mine) + load(other + d) * broadcast(theirs));
    }
    total = total * mine + other_total * theirs;
    most = new_most;
}

void write_output(const AttentionCall& call, int64_t token, int head, const float* output, float total) {
    float* to = call.output + token * call.output_stride + static_cast<int64_t>(head) * call.shape.head_dim;
    const Floats inverse = broadcast(1.0f / total);
    for (int d = 0; d < call.shape.head_dim; d += kLanes) store(to + d, load(output + d) * inverse);
}

// Partial results lie as (partial, head): output, then the largest score and the sum of weights.
float* find_partial(const AttentionCall& call, int64_t partial, int head) {
    return call.partials + (partial * call.shape.num_heads + head) * (call.shape.head_dim + kLanes);
}

void attend_tile(const AttentionCall& call, const Tile& tile, int chunk) {
    const AttentionPlan& plan = *call.plan;
    const int group = call.shape.num_heads / call.shape.num_kv_heads;
    const int kv_head = chunk / plan.chunks_per_kv_head;
    const int head_in_group = chunk % plan.chunks_per_kv_head * plan.heads_per_tile;
    const int first_head = kv_head * group + head_in_group;
    const int head_dim = call.shape.head_dim;
    TileView view;
    view.num_heads = std::min(plan.heads_per_tile, group - head_in_group);
    view.num_tokens = tile.num_tokens;
    view.kv_head = kv_head;
    view.first_position = call.rows->row_start[tile.row] + tile.first_token - call.rows->row_first[tile.row];
    view.block_table = call.rows->block_tables + tile.row * call.rows->table_stride;
    const int num_queries = view.num_tokens * view.num_heads;
    alignas(64) float queries[kMaxQueries][kMaxHeadDim];
    for (int r = 0; r < num_queries; ++r) {
        const float* from = call.queries + (tile.first_token + r / view.num_heads) * call.query_stride +
                            static_cast<int64_t>(first_head + r % view.num_heads) * head_dim;
        for (int d = 0; d < head_dim; d += kLanes) store(&queries[r][d], load(from + d) * broadcast(call.scaling));
    }
    alignas(64) Running running;
    alignas(64) Running next;
    for (int run = tile.first_run; run < tile.last_run; ++run) {
        read_run(call, view, queries, run, run == tile.first_run ? running : next);
        if (run == tile.first_run) continue;
        for (int r = 0; r < num_queries; ++r) {
            merge(
                running.output[r], running.most[r], running.total[r], next.output[r], next.most[r], next.total[r],
                head_dim);
        }
    }
    for (int r = 0; r < num_queries; ++r) {
        const int head = first_head + r % view.num_heads;
        if (tile.partial < 0) {
            write_output(call, tile.first_token + r / view.num_heads, head, running.output[r], running.total[r]);
            continue;
        }
        float* partial = find_partial(call, tile.partial, head);
        std::copy_n(running.output[r], head_dim, partial);
        partial[head_dim] = running.most[r];
        partial[head_dim + 1] = running.total[r];
    }
}

void merge_partials(const AttentionCall& call, const Merge& job) {
    const int head_dim = call.shape.head_dim;
    for (int head = 0; head < call.shape.num_heads; ++head) {
        float* first = find_partial(call, job.first_partial, head);
        for (int i = 1; i < job.num_partials; ++i) {
            const float* other = find_partial(call, job.first_partial + i, head);
            merge(first, first[head_dim], first[head_dim + 1], other, other[head_dim], other[head_dim + 1], head_dim);
        }
        write_output(call, job.token, head, first, first[head_dim + 1]);
    }
}

}  // namespace

int64_t partial_floats(const AttentionShape& shape) {
    return static_cast<int64_t>(shape.num_heads) * (shape.head_dim + kLanes);
}

void plan_attention(AttentionPlan& plan, const AttentionShape& shape, const Rows& rows, int window, int num_threads) {
    const int group = shape.num_heads / shape.num_kv_heads;
    plan.tiles.clear();
    plan.merges.clear();
    plan.num_partials = 0;
    plan.heads_per_tile = std::min(group, kMaxQueries);
    plan.chunks_per_kv_head = (group + plan.heads_per_tile - 1) / plan.heads_per_tile;
    const int tokens_per_tile = std::max(1, kMaxQueries / plan.heads_per_tile);
    const bool has_few_items =
        rows.num_rows * shape.num_kv_heads * plan.chunks_per_kv_head < 4 * static_cast<int64_t>(num_threads);
    for (int32_t row = 0; row < rows.num_rows; ++row) {
        const int32_t last_token = rows.row_first[row + 1];
        for (int32_t token = rows.row_first[row]; token < last_token; token += tokens_per_tile) {
            Tile tile;
            tile.row = row;
            tile.first_token = token;
            tile.num_tokens = std::min(tokens_per_tile, last_token - token);
            const int32_t first_position = rows.row_start[row] + token - rows.row_first[row];
            tile.first_run = window ? std::max(0, first_position - window + 1) / kRunKeys : 0;
            tile.last_run = (first_position + tile.num_tokens - 1) / kRunKeys + 1;
            tile.partial = -1;
            const bool is_decode = rows.row_first[row + 1] - rows.row_first[row] == 1;
            if (!is_decode || !has_few_items || tile.last_run - tile.first_run == 1) {
                plan.tiles.push_back(tile);
                continue;
            }
            plan.merges.push_back({token, plan.num_partials, tile.last_run - tile.first_run});
            for (int32_t run = tile.first_run, end = tile.last_run; run < end; ++run) {
                tile.first_run = run;
                tile.last_run = run + 1;
                tile.partial = plan.num_partials++;
                plan.tiles.push_back(tile);
            }
        }
    }
    // The longest first, so that none is left alone at the end.
    std::stable_sort(plan.tiles.begin(), plan.tiles.end(), [](const Tile& a, const Tile& b) {
        return (a.last_run - a.first_run) * a.num_tokens > (b.last_run - b.first_run) * b.num_tokens;
    });
}

void store_token(
    const AttentionShape& shape, int64_t block, int64_t offset, const float* key, const float* value, float* keys,
    float* values) {
    const int head_dim = shape.head_dim;
    const int64_t head_floats = static_cast<int64_t>(head_dim) * kBlockTokens;
    for (int head = 0; head < shape.num_kv_heads; ++head) {
        const int64_t place = (block * shape.num_kv_heads + head) * head_floats;
        for (int d = 0; d < head_dim; ++d) keys[place + d * kBlockTokens + offset] = key[head * head_dim + d];
        std::copy_n(value + head * head_dim, head_dim, values + place + offset * head_dim);
    }
}

void attend(Pool& pool, const AttentionCall& call) {
    const AttentionPlan& plan = *call.plan;
    const int64_t num_chunks = static_cast<int64_t>(call.shape.num_kv_heads) * plan.chunks_per_kv_head;
    pool.for_each(static_cast<int64_t>(plan.tiles.size()) * num_chunks, [&](int64_t item) {
        attend_tile(call, plan.tiles[item / num_chunks], static_cast<int>(item % num_chunks));
    });
    if (!plan.merges.empty()) {
        pool.for_each(static_cast<int64_t>(plan.merges.size()), [&](int64_t item) {
            merge_partials(call, plan.merges[item]);
        });
    }
}

}  // namespace dedicate
