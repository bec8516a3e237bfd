#include "linear.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>
#if defined(__AMX_INT8__) || defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#include "memory.h"
#include "simd.h"

namespace dedicate {

namespace {

constexpr int kVectors = kPanel / kLanes;
// Rows whose sums fit into the registers beside a panel's vectors.
constexpr int kMaxRows = kLanes == 16 ? 12 : 3;
// Inputs of so many bytes stay in the second-level cache while the panels pass by.
constexpr int64_t kInputBlockBytes = 1 << 20;
constexpr int kDepth = 64;   // inputs of one int8 tile
constexpr int kHalf = 16;    // outputs of one int8 tile
constexpr int64_t kTileBytes = kDepth * kHalf;

constexpr int kGroupVectors = kDepth / kLanes;

// Swaps neighbours at `distance` within a vector.
template <int kDistance>
inline Floats swap_lanes(Floats values) {
    Ints order;
    for (int lane = 0; lane < kLanes; ++lane) order[lane] = lane ^ kDistance;
#if defined(__clang__)
    Floats swapped;
    for (int lane = 0; lane < kLanes; ++lane) swapped[lane] = values[order[lane]];
    return swapped;
#else
    return __builtin_shuffle(values, order);
#endif
}

// One stage of the transform within vectors: a pair (a, b) becomes (a + b, a - b).
template <int kDistance>
inline void add_and_subtract_lanes(Floats* group) {
    if constexpr (kDistance < kLanes) {
        Floats signs;
        for (int lane = 0; lane < kLanes; ++lane) signs[lane] = lane & kDistance ? -1.0f : 1.0f;
        for (int v = 0; v < kGroupVectors; ++v) group[v] = swap_lanes<kDistance>(group[v]) + signs * group[v];
    }
}

// Multiplies 64 inputs, those past `count` zero, by the orthonormal Hadamard matrix.
inline void rotate_group(const float* input, int64_t count, Floats* group) {
    float padded[kDepth];
    if (count < kDepth) {
        std::fill_n(std::copy_n(input, count, padded), kDepth - count, 0.0f);
        input = padded;
    }
    for (int v = 0; v < kGroupVectors; ++v) group[v] = load(input + v * kLanes) * broadcast(0.125f);
    add_and_subtract_lanes<1>(group);
    add_and_subtract_lanes<2>(group);
    add_and_subtract_lanes<4>(group);
    add_and_subtract_lanes<8>(group);
    for (int distance = 1; distance < kGroupVectors; distance *= 2) {
        for (int v = 0; v < kGroupVectors; ++v) {
            if (v & distance) continue;
            const Floats a = group[v];
            const Floats b = group[v + distance];
            group[v] = a + b;
            group[v + distance] = a - b;
        }
    }
}

template <Activation kActivation>
inline Floats activate(Floats x) {
    if (kActivation == Activation::kSilu) return x / (broadcast(1.0f) + exponential(-x));
    // x * sigmoid(2u) is x / 2 * (1 + tanh u).
    const Floats u = x * (broadcast(0.7978845608f) + broadcast(0.0356774081f) * x * x);
    return x / (broadcast(1.0f) + exponential(broadcast(-2.0f) * u));
}

// Brings one row's sums for one panel to where they belong.
template <Finish kFinish>
inline void finish_row(const LinearCall& call, int64_t row, int64_t panel, Floats* sums) {
    const Linear& linear = *call.linear;
    const int64_t first = panel * kPanel;
    if (linear.bias) {
        for (int v = 0; v < kVectors; ++v) sums[v] += load(linear.bias + first + v * kLanes);
    }
    if (kFinish == Finish::kGate) {
        constexpr int kPairs = kVectors / 2;
        float* to = call.output + row * call.output_stride + panel * kHalf;
        for (int v = 0; v < kPairs; ++v) {
            const Floats gate = call.activation == Activation::kSilu ? activate<Activation::kSilu>(sums[v])
                                                                      : activate<Activation::kGeluTanh>(sums[v]);
            store(to + v * kLanes, gate * sums[v + kPairs]);
        }
        return;
    }
    float* to = call.output + row * call.output_stride + first;
    const int64_t left = linear.out_features - first;
    if (left >= kPanel) {
        for (int v = 0; v < kVectors; ++v) {
            Floats value = sums[v];
            if (kFinish == Finish::kAdd) value = load(to + v * kLanes) + broadcast(call.scale) * value;
            store(to + v * kLanes, value);
        }
        return;
    }
    for (int64_t i = 0; i < left; ++i) {
        const float value = sums[i / kLanes][i % kLanes];
        to[i] = kFinish == Finish::kAdd ? to[i] + call.scale * value : value;
    }
}

inline void prefetch_to_l2(const char* address) { __builtin_prefetch(address, 0, 2); }

// kRows rows against one panel. `ahead` is read into the cache meanwhile, `ahead_lines` lines for each input.
template <int kRows, Finish kFinish>
void multiply_floats(
    const LinearCall& call, int64_t row, int64_t panel, const char* ahead, int ahead_lines) {
    const int64_t depth = call.linear->in_features;
    const float* weights = reinterpret_cast<const float*>(call.linear->panels + panel * call.linear->panel_bytes);
    const float* input = call.input + row * call.input_stride;
    const int64_t stride = call.input_stride;
    Floats sums[kRows][kVectors] = {};
    for (int64_t k = 0; k < depth; ++k) {
        Floats w[kVectors];
        for (int v = 0; v < kVectors; ++v) w[v] = load(weights + k * kPanel + v * kLanes);
        if (ahead_lines >= 1) prefetch_to_l2(ahead + k * 64 * ahead_lines);
        if (ahead_lines >= 2) prefetch_to_l2(ahead + k * 128 + 64);
        for (int r = 0; r < kRows; ++r) {
            const Floats x = broadcast(input[r * stride + k]);
            for (int v = 0; v < kVectors; ++v) sums[r][v] += x * w[v];
        }
    }
    for (int r = 0; r < kRows; ++r) finish_row<kFinish>(call, row + r, panel, sums[r]);
}

template <int kRows, Finish kFinish>
struct FloatRows {
    static void multiply(
        int rows, const LinearCall& call, int64_t row, int64_t panel, const char* ahead, int ahead_lines) {
        if (rows == kRows) {
            multiply_floats<kRows, kFinish>(call, row, panel, ahead, ahead_lines);
        } else {
            FloatRows<kRows - 1, kFinish>::multiply(rows, call, row, panel, ahead, ahead_lines);
        }
    }
};
template <Finish kFinish>
struct FloatRows<0, kFinish> {
    static void multiply(int, const LinearCall&, int64_t, int64_t, const char*, int) {}
};

// Rows [first, last) against one panel, in passes of about equal size; the next panel is fetched while they run.
template <Finish kFinish>
void pass_float_panel(const LinearCall& call, int64_t first, int64_t last, int64_t panel, const char* next) {
    const int64_t num_passes = (last - first + kMaxRows - 1) / kMaxRows;
    const int64_t pass_bytes = call.linear->in_features * 64;
    int64_t row = first;
    for (int64_t pass = 0; pass < num_passes; ++pass) {
        const int64_t rows = (last - row + num_passes - pass - 1) / (num_passes - pass);
        // One pass has to bring two lines for each input, the first two of several one line each.
        const int lines = !next || pass >= 2 ? 0 : num_passes == 1 ? 2 : 1;
        FloatRows<kMaxRows, kFinish>::multiply(
            static_cast<int>(rows), call, row, panel, next + (lines ? pass * pass_bytes : 0), lines);
        row += rows;
    }
}

// ---- int8 ----------------------------------------------------------------------------------------------------------

// Integer sums of one row for one panel to floats, in place of where they were computed.
template <Finish kFinish>
inline void finish_integers(const LinearCall& call, int64_t row, int64_t panel, const int32_t* sums) {
    const float row_scale = call.quantized.scales[row];
    Floats values[kVectors];
    for (int v = 0; v < kVectors; ++v) {
        Ints integers;
        std::memcpy(&integers, sums + v * kLanes, sizeof integers);
        const Floats scale = load(call.linear->scales + panel * kPanel + v * kLanes) * broadcast(row_scale);
        values[v] = __builtin_convertvector(integers, Floats) * scale;
    }
    finish_row<kFinish>(call, row, panel, values);
}

#if defined(__AMX_INT8__)

struct alignas(64) TileShapes {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
};

// Constant: GCC's header tells the compiler of 8 of these 64 bytes, and it might leave out stores to the others.
const TileShapes kTileShapes = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

void configure_tiles() { _tile_loadconfig(&kTileShapes); }

// Up to 32 rows against one panel: tiles 0 to 3 hold sums, 4 and 5 inputs, 6 and 7 weights.
template <Finish kFinish>
void multiply_integers(const LinearCall& call, int64_t row, int64_t num_rows, int64_t panel, const char* next) {
    const int64_t num_tiles = quantized_stride(call.linear->in_features) / kDepth;
    const int8_t* weights = reinterpret_cast<const int8_t*>(call.linear->panels + panel * call.linear->panel_bytes);
    const int64_t stride = call.quantized.stride;
    const int8_t* input = call.quantized.values + row * stride;
    alignas(64) int32_t sums[2][2][16][16];
    const bool has_second = num_rows > 16;
    // Neither does it say that loading a tile reads memory.
    asm volatile("" ::: "memory");
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < num_tiles; ++k) {
        const int8_t* tile = weights + k * 2 * kTileBytes;
        if (next) {
            for (int line = 0; line < 32; ++line) prefetch_to_l2(next + k * 2 * kTileBytes + line * 64);
        }
        _tile_loadd(6, tile, 64);
        _tile_loadd(7, tile + kTileBytes, 64);
        _tile_loadd(4, input + k * kDepth, stride);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        if (has_second) {
            _tile_loadd(5, input + 16 * stride + k * kDepth, stride);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
    _tile_stored(0, sums[0][0], 64);
    _tile_stored(1, sums[0][1], 64);
    if (has_second) {
        _tile_stored(2, sums[1][0], 64);
        _tile_stored(3, sums[1][1], 64);
    }
    for (int64_t r = 0; r < num_rows; ++r) {
        alignas(64) int32_t whole[kPanel];
        std::memcpy(whole, sums[r / 16][0][r % 16], 64);
        std::memcpy(whole + kHalf, sums[r / 16][1][r % 16], 64);
        finish_integers<kFinish>(call, row + r, panel, whole);
    }
}
constexpr int64_t kIntegerRows = 32;

#elif defined(__AVX512VNNI__)

void configure_tiles() {}

template <int kRows, Finish kFinish>
void multiply_integer_rows(const LinearCall& call, int64_t row, int64_t panel, const char* next) {
    const int64_t num_tiles = quantized_stride(call.linear->in_features) / kDepth;
    const int8_t* weights = reinterpret_cast<const int8_t*>(call.linear->panels + panel * call.linear->panel_bytes);
    const int64_t stride = call.quantized.stride;
    const int8_t* input = call.quantized.values + row * stride;
    __m512i sums[kRows][2];
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
    const __m512i offset = _mm512_set1_epi8(-128);
    for (int64_t k = 0; k < num_tiles; ++k) {
        const int8_t* tile = weights + k * 2 * kTileBytes;
        for (int group = 0; group < 16; ++group) {
            const __m512i left = _mm512_loadu_si512(tile + group * 64);
            const __m512i right = _mm512_loadu_si512(tile + kTileBytes + group * 64);
            if (next) {
                prefetch_to_l2(next + k * 2 * kTileBytes + group * 128);
                prefetch_to_l2(next + k * 2 * kTileBytes + group * 128 + 64);
            }
            for (int r = 0; r < kRows; ++r) {
                int32_t four;
                std::memcpy(&four, input + r * stride + k * kDepth + group * 4, 4);
                // The instruction wants one side unsigned: inputs are shifted by 128, the column sums take it back.
                const __m512i x = _mm512_xor_si512(_mm512_set1_epi32(four), offset);
                sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], x, left);
                sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], x, right);
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        alignas(64) int32_t whole[kPanel];
        for (int half = 0; half < 2; ++half) {
            const __m512i shift =
                _mm512_slli_epi32(_mm512_loadu_si512(call.linear->column_sums + panel * kPanel + half * kHalf), 7);
            _mm512_store_si512(whole + half * kHalf, _mm512_sub_epi32(sums[r][half], shift));
        }
        finish_integers<kFinish>(call, row + r, panel, whole);
    }
}

template <Finish kFinish>
void multiply_integers(const LinearCall& call, int64_t row, int64_t num_rows, int64_t panel, const char* next) {
    for (int64_t r = 0; r < num_rows;) {
        const char* ahead = r == 0 ? next : nullptr;
        if (num_rows - r >= 8) {
            multiply_integer_rows<8, kFinish>(call, row + r, panel, ahead);
            r += 8;
        } else if (num_rows - r >= 4) {
            multiply_integer_rows<4, kFinish>(call, row + r, panel, ahead);
            r += 4;
        } else {
            multiply_integer_rows<1, kFinish>(call, row + r, panel, ahead);
            r += 1;
        }
    }
}
constexpr int64_t kIntegerRows = 32;

#else

void configure_tiles() {}

template <Finish kFinish>
void multiply_integers(const LinearCall& call, int64_t row, int64_t num_rows, int64_t panel, const char*) {
    const int64_t num_tiles = quantized_stride(call.linear->in_features) / kDepth;
    const int8_t* weights = reinterpret_cast<const int8_t*>(call.linear->panels + panel * call.linear->panel_bytes);
    for (int64_t r = row; r < row + num_rows; ++r) {
        const int8_t* input = call.quantized.values + r * call.quantized.stride;
        int32_t sums[kPanel] = {};
        for (int64_t k = 0; k < num_tiles; ++k) {
            for (int half = 0; half < 2; ++half) {
                const int8_t* tile = weights + (k * 2 + half) * kTileBytes;
                for (int group = 0; group < 16; ++group) {
                    int16_t x[4];
                    for (int i = 0; i < 4; ++i) x[i] = input[k * kDepth + group * 4 + i];
                    for (int n = 0; n < kHalf; ++n) {
                        const int8_t* w = tile + group * 64 + n * 4;
                        sums[half * kHalf + n] += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
                    }
                }
            }
        }
        finish_integers<kFinish>(call, r, panel, sums);
    }
}
constexpr int64_t kIntegerRows = 32;

#endif

template <Finish kFinish>
void pass_integer_panel(const LinearCall& call, int64_t first, int64_t last, int64_t panel, const char* next) {
    for (int64_t row = first; row < last; row += kIntegerRows) {
        multiply_integers<kFinish>(call, row, std::min(kIntegerRows, last - row), panel, row == first ? next : nullptr);
    }
}

void pack_floats(const Linear& linear, const float* weights, int64_t panel) {
    float* to = reinterpret_cast<float*>(linear.panels + panel * linear.panel_bytes);
    const int64_t first = panel * kPanel;
    const int64_t width = std::min<int64_t>(kPanel, linear.out_features - first);
    for (int64_t k = 0; k < linear.in_features; ++k) {
        for (int64_t n = 0; n < kPanel; ++n) {
            to[k * kPanel + n] = n < width ? weights[(first + n) * linear.in_features + k] : 0.0f;
        }
    }
}

void rotate_row(const float* row, int64_t count, std::vector<float>& rotated) {
    Floats group[kGroupVectors];
    for (int64_t first = 0; first < count; first += kDepth) {
        rotate_group(row + first, std::min<int64_t>(kDepth, count - first), group);
        std::memcpy(&rotated[first], group, sizeof group);
    }
}

void pack_integers(const Linear& linear, const float* weights, int64_t panel) {
    const int64_t depth = quantized_stride(linear.in_features);
    std::vector<float> rotated(depth);
    int8_t* to = reinterpret_cast<int8_t*>(linear.panels + panel * linear.panel_bytes);
    std::memset(to, 0, linear.panel_bytes);
    for (int64_t n = 0; n < kPanel; ++n) {
        const int64_t feature = panel * kPanel + n;
        linear.scales[feature] = 0.0f;
        linear.column_sums[feature] = 0;
        if (feature >= linear.out_features) continue;
        rotate_row(weights + feature * linear.in_features, linear.in_features, rotated);
        const float* from = rotated.data();
        float largest = 0.0f;
        for (int64_t k = 0; k < depth; ++k) largest = std::max(largest, std::fabs(from[k]));
        const float scale = largest / 127.0f;
        const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
        int32_t sum = 0;
        for (int64_t k = 0; k < depth; ++k) {
            const int8_t value = static_cast<int8_t>(std::nearbyint(static_cast<double>(from[k]) * inverse));
            sum += value;
            const int64_t tile = (k / kDepth) * 2 + n / kHalf;
            to[tile * kTileBytes + (k % kDepth) / 4 * 64 + (n % kHalf) * 4 + k % 4] = value;
        }
        linear.scales[feature] = scale;
        linear.column_sums[feature] = sum;
    }
}

void destroy(Linear* linear) {
    if (!linear) return;
    std::free(linear->panels);
    std::free(linear->bias);
    std::free(linear->scales);
    std::free(linear->column_sums);
    delete linear;
}

}  // namespace

int64_t quantized_stride(int64_t in_features) { return (in_features + kDepth - 1) / kDepth * kDepth; }

void quantize_row(const float* input, int64_t count, int64_t row, const QuantizedRows& to) {
    int8_t* values = to.values + row * to.stride;
    Floats largest = {};
    // Zero as long as all values are finite.
    Floats poison = {};
    Floats group[kGroupVectors];
    for (int64_t first = 0; first < to.stride; first += kDepth) {
        rotate_group(input + first, std::min<int64_t>(kDepth, count - first), group);
        for (int v = 0; v < kGroupVectors; ++v) {
            largest = maximum(maximum(group[v], -group[v]), largest);
            poison += group[v] * Floats{};
        }
    }
    const float most = maximum_of(largest);
    const bool is_broken = !(sum_of(poison) == 0.0f);
    to.scales[row] = is_broken ? std::nanf("") : most / 127.0f;
    if (is_broken) {
        std::memset(values, 0, to.stride);
        return;
    }
    const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    const Floats magic = broadcast(12582912.0f);
    for (int64_t first = 0; first < to.stride; first += kDepth) {
        rotate_group(input + first, std::min<int64_t>(kDepth, count - first), group);
        for (int v = 0; v < kGroupVectors; ++v) {
            const Ints rounded = (Ints)(group[v] * broadcast(inverse) + magic);
            const Bytes bytes = __builtin_convertvector(rounded, Bytes);
            std::memcpy(values + first + v * kLanes, &bytes, sizeof bytes);
        }
    }
}

template <Finish kFinish>
void apply_linear(Pool& pool, const LinearCall& call) {
    const Linear& linear = *call.linear;
    const bool is_float = linear.format == Format::kFloat32;
    const int64_t row_bytes = is_float ? linear.in_features * 4 : call.quantized.stride;
    // A multiple of the rows that an int8 tile holds and of those that a float pass holds.
    const int64_t block_rows = std::max<int64_t>(kInputBlockBytes / row_bytes / 96, 1) * 96;
    const int64_t num_blocks = (call.num_rows + block_rows - 1) / block_rows;
    const int64_t num_items = num_blocks * linear.num_panels;
    if (!is_float) configure_tiles();
    // One item is taken ahead, so that its weights can be fetched while the one before is computed.
    int64_t item = pool.take_item();
    while (item < num_items) {
        const int64_t next_item = pool.take_item();
        const int64_t panel = item % linear.num_panels;
        const int64_t first = item / linear.num_panels * block_rows;
        const int64_t last = std::min(first + block_rows, call.num_rows);
        const char* next =
            next_item < num_items ? linear.panels + next_item % linear.num_panels * linear.panel_bytes : nullptr;
        if (is_float) {
            pass_float_panel<kFinish>(call, first, last, panel, next);
        } else {
            pass_integer_panel<kFinish>(call, first, last, panel, next);
        }
        item = next_item;
    }
    pool.barrier();
}

template void apply_linear<Finish::kStore>(Pool&, const LinearCall&);
template void apply_linear<Finish::kAdd>(Pool&, const LinearCall&);
template void apply_linear<Finish::kGate>(Pool&, const LinearCall&);

}  // namespace dedicate

using namespace dedicate;

extern "C" {

DedicateLinear* dedicate_linear_pack(
    DedicatePool* pool, int32_t format, const float* weights, const float* bias, int64_t out_features,
    int64_t in_features) {
    Linear* linear = new Linear{};
    linear->format = static_cast<Format>(format);
    linear->in_features = in_features;
    linear->out_features = out_features;
    linear->num_panels = (out_features + kPanel - 1) / kPanel;
    const bool is_float = linear->format == Format::kFloat32;
    linear->panel_bytes = kPanel * (is_float ? in_features * 4 : quantized_stride(in_features));
    linear->panels = static_cast<char*>(allocate_pages(linear->num_panels * linear->panel_bytes));
    const int64_t padded = linear->num_panels * kPanel;
    bool is_complete = linear->panels != nullptr;
    if (bias) {
        linear->bias = static_cast<float*>(std::calloc(padded, sizeof(float)));
        is_complete &= linear->bias != nullptr;
        if (linear->bias) std::memcpy(linear->bias, bias, out_features * sizeof(float));
    }
    if (!is_float) {
        linear->scales = static_cast<float*>(std::calloc(padded, sizeof(float)));
        linear->column_sums = static_cast<int32_t*>(std::calloc(padded, sizeof(int32_t)));
        is_complete &= linear->scales && linear->column_sums;
    }
    if (!is_complete) {
        destroy(linear);
        return nullptr;
    }
    struct Packing {
        const Linear* linear;
        const float* weights;
    } packing{linear, weights};
    dedicate_parallel_for(
        pool, linear->num_panels,
        [](void* context, int64_t panel, int) {
            const Packing& packing = *static_cast<Packing*>(context);
            if (packing.linear->format == Format::kFloat32) {
                pack_floats(*packing.linear, packing.weights, panel);
            } else {
                pack_integers(*packing.linear, packing.weights, panel);
            }
        },
        &packing);
    return reinterpret_cast<DedicateLinear*>(linear);
}

void dedicate_linear_free(DedicateLinear* linear) { destroy(reinterpret_cast<Linear*>(linear)); }

int32_t dedicate_linear_apply(
    DedicatePool* handle, const DedicateLinear* packed, const float* input, int64_t num_rows, float* output) {
    const Linear* linear = reinterpret_cast<const Linear*>(packed);
    struct Task {
        Pool* pool;
        LinearCall call;
    } task{reinterpret_cast<Pool*>(handle), {}};
    LinearCall& call = task.call;
    call.linear = linear;
    call.input = input;
    call.input_stride = linear->in_features;
    call.num_rows = num_rows;
    call.output = output;
    call.output_stride = linear->out_features;
    Buffer quantized;
    Buffer scales;
    if (linear->format == Format::kInt8) {
        const int64_t padded_rows = (num_rows + 31) / 32 * 32;
        call.quantized.stride = quantized_stride(linear->in_features);
        if (!quantized.reserve(padded_rows * call.quantized.stride) || !scales.reserve(padded_rows * 4)) return 0;
        call.quantized.values = static_cast<int8_t*>(quantized.data());
        call.quantized.scales = static_cast<float*>(scales.data());
    }
    task.pool->run(
        [](void* context, int) {
            Task& task = *static_cast<Task*>(context);
            const LinearCall& call = task.call;
            if (call.linear->format == Format::kInt8) {
                task.pool->for_each(call.num_rows, [&](int64_t row) {
                    quantize_row(call.input + row * call.input_stride, call.linear->in_features, row, call.quantized);
                });
            }
            apply_linear<Finish::kStore>(*task.pool, call);
        },
        &task);
    return 1;
}

}  // extern "C"
