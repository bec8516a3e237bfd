// One row is a few passes over its logits and a sort of the few tokens that can be drawn:
//
//   survey    the maximum of every lane over a group of vectors, about 1,500 maxima in all, and whether there is a NaN
//   head      the k-th largest of those maxima has at least k logits at or above it and rarely many more: these are
//             collected and sorted. With top-k that is all; without it, the sum of all weights is one more pass, and
//             most draws fall into the head.
//   spread    what the head cannot tell (flat distributions, a top-k of thousands): a histogram of weights, in which only
//             the bins where a filter or the draw falls are sorted.
//
// Weights are exp((logit - maximum) / temperature), in double for the head and in float for the rest; sums are taken in
// double. A token is therefore that of the definition unless the draw is within about 1e-6 of its border.
#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include "simd.h"

namespace dedicate {

namespace {

constexpr double kGreedyBelow = 1e-5;  // as in worker/sampler.py
constexpr int64_t kNumMaxima = 1536;   // aimed at; arbitrary, three times the largest head
constexpr int64_t kMaxHead = 512;      // arbitrary: beyond it, the histogram is as quick
constexpr int64_t kOpenHead = 128;     // without top-k; arbitrary
constexpr int64_t kNumBins = 2048;     // both of its arrays stay in the first-level cache
constexpr float kFloor = -40.0f;       // exp of it, times any vocabulary, is less than the smallest draw
constexpr int32_t kNoBin = -1;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Orders as (logit, then smaller id) does.
using Key = uint64_t;

inline Key make_key(float logit, int64_t id) {
    logit += 0.0f;  // -0 is 0
    uint32_t bits;
    std::memcpy(&bits, &logit, sizeof bits);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<Key>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

inline int64_t id_of(Key key) { return 0xffffffffu - static_cast<uint32_t>(key); }

inline float logit_of(Key key) {
    uint32_t bits = static_cast<uint32_t>(key >> 32);
    bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
    float logit;
    std::memcpy(&logit, &bits, sizeof logit);
    return logit;
}

inline void sort_descending(Key* keys, int64_t count) { std::sort(keys, keys + count, std::greater<Key>()); }

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Vectors of one group: each of their lanes gives one maximum.
inline int64_t group_vectors(int64_t vocab_size) { return std::max<int64_t>(1, vocab_size / kNumMaxima); }

inline int64_t num_maxima(int64_t vocab_size) {
    return round_up(vocab_size, group_vectors(vocab_size) * kLanes) / group_vectors(vocab_size);
}

// The working memory of one thread.
struct Scratch {
    float* logits;   // with penalties and biases
    float* weights;  // of the whole row, in whole vectors
    float* maxima;
    int32_t* bins;  // the bin of each token
    int32_t* bin_counts;
    double* bin_masses;
    Key* keys;
    int64_t num_bytes;

    Scratch(void* memory, int64_t vocab_size) : num_bytes(0) {
        char* base = static_cast<char*>(memory);
        const auto take = [&](int64_t bytes) {
            const int64_t offset = num_bytes;
            num_bytes += round_up(bytes, 64);
            return base ? base + offset : nullptr;
        };
        logits = reinterpret_cast<float*>(take(4 * vocab_size));
        weights = reinterpret_cast<float*>(take(4 * round_up(vocab_size, kLanes)));
        maxima = reinterpret_cast<float*>(take(4 * num_maxima(vocab_size)));
        bins = reinterpret_cast<int32_t*>(take(4 * vocab_size));
        bin_counts = reinterpret_cast<int32_t*>(take(4 * kNumBins));
        bin_masses = reinterpret_cast<double*>(take(8 * kNumBins));
        keys = reinterpret_cast<Key*>(take(8 * (vocab_size + kMaxHead)));
    }
};

// Lanes from `count` on are minus infinity.
inline Floats load_up_to(const float* from, int64_t count) {
    if (count >= kLanes) return load(from);
    float values[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) values[lane] = lane < count ? from[lane] : -kInfinity;
    return load(values);
}

inline bool is_any(Ints condition) {
    int64_t parts[sizeof(Ints) / 8];
    std::memcpy(parts, &condition, sizeof parts);
    int64_t all = 0;
    for (int64_t part : parts) all |= part;
    return all != 0;
}

// Calls `visit(index)` in ascending order wherever `test(value)` holds; stretches without any are passed over quickly.
// `test` is for vectors and for single values.
template <typename Value, typename Vector, typename Test, typename Visit>
inline void visit_where(const Value* values, int64_t count, const Test& test, const Visit& visit) {
    constexpr int64_t kStretch = 2 * kLanes;
    int64_t first = 0;
    for (; first + kStretch <= count; first += kStretch) {
        Vector left, right;
        std::memcpy(&left, values + first, sizeof left);
        std::memcpy(&right, values + first + kLanes, sizeof right);
        if (!is_any(test(left) | test(right))) continue;
        for (int64_t i = first; i < first + kStretch; ++i) {
            if (test(values[i])) visit(i);
        }
    }
    for (; first < count; ++first) {
        if (test(values[first])) visit(first);
    }
}

// A row of logits whose lane maxima are known.
struct Survey {
    const float* logits;
    int64_t vocab_size;
    float* maxima;  // in no particular order
    int64_t num_maxima;
    float best;
    bool has_nan;
};

Survey survey_row(const float* logits, int64_t vocab_size, float* maxima) {
    const int64_t num_vectors = group_vectors(vocab_size);
    const Floats lowest = broadcast(-kInfinity);
    Floats best = lowest;
    Ints nans = {};
    float* to = maxima;
    for (int64_t first = 0; first < vocab_size; to += kLanes) {
        Floats group = lowest;
        for (int64_t v = 0; v < num_vectors && first < vocab_size; ++v, first += kLanes) {
            const Floats values = load_up_to(logits + first, vocab_size - first);
            group = values > group ? values : group;
            nans |= values != values;
        }
        store(to, group);
        best = maximum(best, group);
    }
    return {logits, vocab_size, maxima, to - maxima, maximum_of(best), is_any(nans)};
}

int64_t find_first(const float* logits, int64_t vocab_size, float value) {
    int64_t first = 0;
    for (; first + kLanes <= vocab_size; first += kLanes) {
        if (is_any(load(logits + first) == broadcast(value))) break;
    }
    while (logits[first] != value) ++first;
    return first;
}

// Writes the keys of the best `count` tokens, best first, and returns how many: tokens at minus infinity are left out.
// `count` is at most `kMaxHead` and the vocabulary's size.
int64_t rank_head(const Survey& survey, int64_t count, Key* keys) {
    std::nth_element(
        survey.maxima, survey.maxima + count - 1, survey.maxima + survey.num_maxima, std::greater<float>());
    const float border = survey.maxima[count - 1];
    const float above = std::nextafter(border, kInfinity);
    int64_t num_keys = 0;
    // Of those at the border the first ones are enough, and in a flat row they are many.
    Key at_border[kMaxHead];
    int64_t num_at_border = 0;
    float lowest = border == -kInfinity ? above : border;
    visit_where<float, Floats>(
        survey.logits, survey.vocab_size, [&](auto values) { return values >= lowest; },
        [&](int64_t i) {
            const Key key = make_key(survey.logits[i], i);
            if (survey.logits[i] != border) {
                keys[num_keys++] = key;
            } else if (num_at_border < count) {
                at_border[num_at_border++] = key;
                if (num_at_border == count) lowest = above;
            }
        });
    if (num_keys > count) {
        std::nth_element(keys, keys + count, keys + num_keys, std::greater<Key>());
        num_keys = count;
    }
    sort_descending(keys, num_keys);
    for (int64_t i = 0; i < num_at_border && num_keys < count; ++i) keys[num_keys++] = at_border[i];
    return num_keys;
}

// e^x for x <= 0, to 2 units in the last place and 1 exactly at 0; below -87 it stays at 1.6e-38. `exponential` without
// what it does for other numbers, which is half of its time.
inline Floats weigh(Floats x) {
    const Floats lowest = broadcast(-87.0f);
    x = x > lowest ? x : lowest;
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
    const Floats magic = broadcast(12582912.0f);
    const Floats shifted = x * broadcast(1.44269504f) + magic;
    const Floats n = shifted - magic;
    const Floats r = (x - n * broadcast(0.693359375f)) - n * broadcast(-2.12194440e-4f);
    Floats p = broadcast(1.0f / 720);
    for (const float factor : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + broadcast(factor);
    return (Floats)((Ints)p + ((Ints)shifted << 23));
}

// Adds vectors of floats up in double.
class Sum {
public:
    void add(Floats values) {
        Half halves[2];
        std::memcpy(halves, &values, sizeof halves);
        sums_[0] += __builtin_convertvector(halves[0], Doubles);
        sums_[1] += __builtin_convertvector(halves[1], Doubles);
    }
    double total() const {
        const Doubles sums = sums_[0] + sums_[1];
        double total = 0;
        for (int lane = 0; lane < kLanes / 2; ++lane) total += sums[lane];
        return total;
    }

private:
    typedef float Half __attribute__((vector_size(2 * kLanes)));
    typedef double Doubles __attribute__((vector_size(4 * kLanes)));
    Doubles sums_[2] = {};
};

// The sum of exp((logit - best) * inverse_temperature) over the row.
double sum_weights(const Survey& survey, float inverse_temperature) {
    const float* logits = survey.logits;
    const int64_t vocab_size = survey.vocab_size;
    const Floats best = broadcast(survey.best), factor = broadcast(inverse_temperature);
    const auto weights_at = [&](int64_t i) { return weigh((load(logits + i) - best) * factor); };
    Sum sum;
    int64_t first = 0;
    for (; first + 4 * kLanes <= vocab_size; first += 4 * kLanes) {
        sum.add((weights_at(first) + weights_at(first + kLanes)) +
                (weights_at(first + 2 * kLanes) + weights_at(first + 3 * kLanes)));
    }
    for (; first < vocab_size; first += kLanes) {
        sum.add(weigh((load_up_to(logits + first, vocab_size - first) - best) * factor));
    }
    return sum.total();
}

struct Filters {
    double temperature;
    int64_t top_k;  // the vocabulary's size where it is off
    double top_p;
    double min_p;
    double draw;
};

constexpr int64_t kUnknown = -1;

// Draws from the candidates that `rank_head` found. `total` is the mass that top-p is a part of; where `has_more`,
// candidates follow that are not in the head, and what falls among them is `kUnknown`.
int64_t draw_from_head(
    const Key* keys, int64_t count, float best, const Filters& filters, double total, bool has_more) {
    double cumulative[kMaxHead];
    double sum = 0.0;
    int64_t num_kept = 0;
    for (int64_t i = 0; i < count; ++i) {
        const double weight = std::exp((static_cast<double>(logit_of(keys[i])) - best) / filters.temperature);
        const bool is_in_nucleus = filters.top_p >= 1.0 || sum < filters.top_p * total;
        if (i && (!is_in_nucleus || weight < filters.min_p || weight <= 0.0)) {
            has_more = false;
            break;
        }
        sum += weight;
        cumulative[num_kept++] = sum;
    }
    if (has_more && (filters.top_p < 1.0 || filters.min_p > 0.0)) return kUnknown;
    const double target = filters.draw * (has_more ? total : sum);
    if (has_more && target > sum) return kUnknown;
    const int64_t rank = std::lower_bound(cumulative, cumulative + num_kept, target) - cumulative;
    return id_of(keys[std::min(rank, num_kept - 1)]);
}

double sum_head(const Key* keys, int64_t count, float best, double temperature) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; ++i) {
        sum += std::exp((static_cast<double>(logit_of(keys[i])) - best) / temperature);
    }
    return sum;
}

// The weights of a whole row in bins of equal width in the exponent, heaviest tokens first.
class Spread {
public:
    Spread(const Survey& survey, const Scratch& scratch, float inverse_temperature)
        : survey_(survey), scratch_(scratch) {
        const float lowest = fill_weights(inverse_temperature);
        const float bins_per_unit = (kNumBins - 1) / std::max(-lowest, 1e-30f);
        fill_bins(inverse_temperature, bins_per_unit);
    }

    // A token, and the mass of all tokens up to and with it.
    struct Place {
        int64_t bin;
        int64_t rank;  // in its bin
        double mass;
        int64_t token_id;

        bool is_after(const Place& other) const {
            return bin != other.bin ? bin > other.bin : rank > other.rank;
        }
    };

    // Where all tokens have passed; not a token.
    Place end() const { return {kNumBins, 0, std::accumulate(scratch_.bin_masses, scratch_.bin_masses + kNumBins, 0.0), 0}; }

    // The first token where the mass reaches `mass`; the last of all if none does.
    Place find_mass(double mass) {
        return find([&](int64_t, double sum) { return sum >= mass; });
    }

    // The token of rank `count` - 1; the last of all if there are fewer.
    Place find_count(int64_t count) {
        return find([&](int64_t num, double) { return num >= count; });
    }

    // The last token whose weight is at least `weight`; the first of all if none is.
    Place find_weight(double weight) {
        return find_count(std::max<int64_t>(count_from(static_cast<float>(weight)), 1));
    }

private:
    // Returns the smallest exponent above the floor.
    float fill_weights(float inverse_temperature) {
        const Floats best = broadcast(survey_.best), factor = broadcast(inverse_temperature);
        const Floats floor = broadcast(kFloor), zero = {};
        Floats lowest = {};
        for (int64_t first = 0; first < survey_.vocab_size; first += kLanes) {
            const Floats x = (load_up_to(survey_.logits + first, survey_.vocab_size - first) - best) * factor;
            const Floats kept = x < floor ? zero : x;
            lowest = kept < lowest ? kept : lowest;
            store(scratch_.weights + first, weigh(x));
        }
        return -maximum_of(-lowest);
    }

    void fill_bins(float inverse_temperature, float bins_per_unit) {
        const float* logits = survey_.logits;
        int32_t* bins = scratch_.bins;
        const float best = survey_.best;
        for (int64_t i = 0; i < survey_.vocab_size; ++i) {
            const float x = (logits[i] - best) * inverse_temperature;
            const float kept = x < kFloor ? 0.0f : x;
            const int32_t bin = static_cast<int32_t>(kept * -bins_per_unit);
            bins[i] = x < kFloor ? kNoBin : bin;
        }
        std::memset(scratch_.bin_counts, 0, sizeof(int32_t) * kNumBins);
        std::memset(scratch_.bin_masses, 0, sizeof(double) * kNumBins);
        for (int64_t i = 0; i < survey_.vocab_size; ++i) {
            if (bins[i] == kNoBin) continue;
            ++scratch_.bin_counts[bins[i]];
            scratch_.bin_masses[bins[i]] += scratch_.weights[i];
        }
    }

    int64_t count_from(float weight) const {
        int64_t count = 0;
        for (int64_t i = 0; i < survey_.vocab_size; ++i) {
            count += scratch_.bins[i] != kNoBin && scratch_.weights[i] >= weight;
        }
        return count;
    }

    // The first token where `is_reached(number of tokens, mass)`, which must be monotone.
    template <typename Reached>
    Place find(const Reached& is_reached) {
        int64_t num = 0, last_bin = 0, last_num = 0;
        double mass = 0.0, last_mass = 0.0;
        for (int64_t bin = 0; bin < kNumBins; ++bin) {
            const int64_t count = scratch_.bin_counts[bin];
            if (!count) continue;
            last_bin = bin;
            last_num = num;
            last_mass = mass;
            num += count;
            mass += scratch_.bin_masses[bin];
            if (is_reached(num, mass)) break;
        }
        rank_bin(last_bin);
        int64_t rank = 0;
        mass = last_mass;
        for (;; ++rank) {
            mass += scratch_.weights[id_of(scratch_.keys[rank])];
            if (rank + 1 == scratch_.bin_counts[last_bin] || is_reached(last_num + rank + 1, mass)) break;
        }
        return {last_bin, rank, mass, id_of(scratch_.keys[rank])};
    }

    void rank_bin(int64_t bin) {
        Key* keys = scratch_.keys;
        int64_t count = 0;
        bool is_sorted = true;
        const int32_t wanted = static_cast<int32_t>(bin);
        visit_where<int32_t, Ints>(
            scratch_.bins, survey_.vocab_size, [&](auto bins) { return bins == wanted; },
            [&](int64_t i) {
                keys[count] = make_key(survey_.logits[i], i);
                is_sorted &= !count || keys[count] < keys[count - 1];
                ++count;
            });
        if (!is_sorted) sort_descending(keys, count);
    }

    const Survey& survey_;
    const Scratch& scratch_;
};

int64_t draw_from_spread(const Survey& survey, const Scratch& scratch, const Filters& filters) {
    Spread spread(survey, scratch, static_cast<float>(1.0 / filters.temperature));
    Spread::Place last = filters.top_k < survey.vocab_size ? spread.find_count(filters.top_k) : spread.end();
    const auto keep_until = [&](const Spread::Place& place) {
        if (last.is_after(place)) last = place;
    };
    if (filters.top_p < 1.0) keep_until(spread.find_mass(filters.top_p * last.mass));
    if (filters.min_p > 0.0) keep_until(spread.find_weight(filters.min_p));
    const Spread::Place drawn = spread.find_mass(filters.draw * last.mass);
    return drawn.is_after(last) ? last.token_id : drawn.token_id;
}

int64_t draw_token(const Survey& survey, const Scratch& scratch, const Filters& filters) {
    const bool is_open = filters.top_k > kMaxHead;
    const int64_t head = std::min(is_open ? kOpenHead : filters.top_k, survey.vocab_size);
    const bool is_whole = filters.top_k >= survey.vocab_size;
    if (is_open && !is_whole) return draw_from_spread(survey, scratch, filters);
    const int64_t count = rank_head(survey, head, scratch.keys);
    const double total = is_open ? sum_weights(survey, static_cast<float>(1.0 / filters.temperature))
                                 : sum_head(scratch.keys, count, survey.best, filters.temperature);
    const bool has_more = is_open && count == head;
    const int64_t token_id = draw_from_head(scratch.keys, count, survey.best, filters, total, has_more);
    return token_id == kUnknown ? draw_from_spread(survey, scratch, filters) : token_id;
}

// The step and finaliser of splitmix64. Source: https://prng.di.unimi.it/splitmix64.c.
inline uint64_t mix(uint64_t state) {
    state += 0x9E3779B97F4A7C15u;
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9u;
    state = (state ^ (state >> 27)) * 0x94D049BB133111EBu;
    return state ^ (state >> 31);
}

inline double draw_uniform(uint64_t seed, uint64_t position) {
    return (static_cast<double>(mix(mix(seed) + position) >> 32) + 0.5) / 4294967296.0;
}

// Returns the logits with penalties and biases: a copy if there are any.
const float* adjust(const float* logits, int64_t vocab_size, const DedicateSampling& sampling, float* copy) {
    if (!sampling.num_seen && !sampling.num_biases) return logits;
    std::memcpy(copy, logits, sizeof(float) * vocab_size);
    const float repetition = static_cast<float>(sampling.repetition_penalty);
    const float presence = static_cast<float>(sampling.presence_penalty);
    const float frequency = static_cast<float>(sampling.frequency_penalty);
    for (int64_t i = 0; i < sampling.num_seen; ++i) {
        const DedicateSeenToken& seen = sampling.seen[i];
        float& logit = copy[seen.token_id];
        logit = logit < 0 ? logit * repetition : logit / repetition;
        if (seen.num_outputs) logit -= presence + frequency * static_cast<float>(seen.num_outputs);
    }
    for (int64_t i = 0; i < sampling.num_biases; ++i) {
        const DedicateBias& bias = sampling.biases[i];
        copy[bias.token_id] = bias.bias == -kInfinity ? -kInfinity : copy[bias.token_id] + bias.bias;
    }
    return copy;
}

}  // namespace

}  // namespace dedicate

using namespace dedicate;

extern "C" {

int64_t dedicate_sample_scratch_bytes(int64_t vocab_size) { return Scratch(nullptr, vocab_size).num_bytes; }

void dedicate_sample_row(
    const float* logits, int64_t vocab_size, const DedicateSampling* sampling, DedicateSampled* sampled,
    void* memory) {
    const Scratch scratch(memory, vocab_size);
    logits = adjust(logits, vocab_size, *sampling, scratch.logits);
    const Survey survey = survey_row(logits, vocab_size, scratch.maxima);
    sampled->is_broken = survey.has_nan || !std::isfinite(survey.best);
    if (sampled->is_broken) {
        sampled->token_id = 0;
    } else if (sampling->temperature < kGreedyBelow) {
        sampled->token_id = find_first(logits, vocab_size, survey.best);
    } else {
        const int64_t top_k = sampling->top_k > 0 ? std::min(sampling->top_k, vocab_size) : vocab_size;
        const double draw = draw_uniform(sampling->seed, sampling->output_position);
        sampled->token_id = draw_token(
            survey, scratch, {sampling->temperature, top_k, sampling->top_p, sampling->min_p, draw});
    }
}

void dedicate_logprobs_row(const float* logits, int64_t vocab_size, DedicateLogprobs* logprobs, void* memory) {
    const Scratch scratch(memory, vocab_size);
    const Survey survey = survey_row(logits, vocab_size, scratch.maxima);
    const double normaliser = survey.best + std::log(sum_weights(survey, 1.0f));
    logprobs->logprob = logits[logprobs->token_id] - normaliser;
    if (!logprobs->num_top) return;
    logprobs->num_top = rank_head(survey, std::min(std::min(logprobs->num_top, kMaxHead), vocab_size), scratch.keys);
    for (int64_t i = 0; i < logprobs->num_top; ++i) {
        logprobs->top_ids[i] = static_cast<int32_t>(id_of(scratch.keys[i]));
        logprobs->top_logprobs[i] = logit_of(scratch.keys[i]) - normaliser;
    }
}

}  // extern "C"

namespace {

// Calls `body(row, scratch)` for every row, in whichever thread is free.
template <typename Body>
void for_each_row(DedicatePool* pool, int64_t num_rows, int64_t vocab_size, void* scratch, const Body& body) {
    struct Loop {
        const Body& body;
        char* scratch;
        int64_t scratch_bytes;
    } loop{body, static_cast<char*>(scratch), dedicate_sample_scratch_bytes(vocab_size)};
    const auto run = [](void* context, int64_t row, int thread) {
        const Loop& loop = *static_cast<Loop*>(context);
        loop.body(row, loop.scratch + thread * loop.scratch_bytes);
    };
    if (pool && num_rows > 1) {
        dedicate_parallel_for(pool, num_rows, run, &loop);
    } else {
        for (int64_t row = 0; row < num_rows; ++row) run(&loop, row, 0);
    }
}

}  // namespace

extern "C" {

void dedicate_sample_rows(
    DedicatePool* pool, const float* logits, int64_t num_rows, int64_t stride, int64_t vocab_size,
    const DedicateSampling* samplings, DedicateSampled* sampled, const uint8_t* wants_logprobs,
    DedicateLogprobs* logprobs, void* scratch) {
    for_each_row(pool, num_rows, vocab_size, scratch, [&](int64_t row, void* own) {
        const float* values = logits + row * stride;
        dedicate_sample_row(values, vocab_size, samplings + row, sampled + row, own);
        if (!wants_logprobs[row] || sampled[row].is_broken) return;
        logprobs[row].token_id = sampled[row].token_id;
        dedicate_logprobs_row(values, vocab_size, logprobs + row, own);
    });
}

void dedicate_logprobs_rows(
    DedicatePool* pool, const float* logits, int64_t num_rows, int64_t stride, int64_t vocab_size,
    DedicateLogprobs* logprobs, void* scratch) {
    for_each_row(pool, num_rows, vocab_size, scratch, [&](int64_t row, void* own) {
        dedicate_logprobs_row(logits + row * stride, vocab_size, logprobs + row, own);
    });
}

}  // extern "C"
