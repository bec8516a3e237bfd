// A stack of decoder layers in one call: norm, projections, rotary positions, attention, residuals and the gated
// feed-forward network of the Llama family and its relatives.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "simd.h"

extern "C" {

// One layer. Norms are (hidden_size,) float32 weights, null where the layer has none at that place.
struct DedicateLayer {
    const float* attention_norm;         // before the attention
    const float* attention_output_norm;  // on what the attention adds
    const float* mlp_norm;               // before the feed-forward network
    const float* mlp_output_norm;        // on what the network adds
    const float* query_norm;             // on each head's query, or on all of them at once
    const float* key_norm;
    const DedicateLinear* qkv;           // queries, keys, values, in this order
    const DedicateLinear* output;
    const DedicateLinear* gate_up;       // panels of 16 gates and their 16 ups
    const DedicateLinear* down;
    float norm_epsilon;
    float scaling;                       // of scores
    float residual_scale;
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;
    int32_t rotary_dim;                  // leading dimensions that are rotated; 0 for none
    int32_t query_norm_is_whole;         // one norm over all heads, not one for each
    int32_t window;                      // 0 for none
    int32_t activation;
    float* keys;                         // the layer's cache
    float* values;
};

struct DedicateStep {
    int64_t num_tokens;
    float* hidden;             // (num_tokens, hidden_size), in and out
    const float* cosines;      // (num_tokens, rotary_dim)
    const float* sines;
    const int64_t* slots;      // (num_tokens,)
    int64_t num_rows;
    const int32_t* row_first;  // (num_rows + 1,)
    const int32_t* row_start;  // (num_rows,)
    const int32_t* block_tables;
    int64_t table_stride;
};

struct DedicateStack;
DedicateStack* dedicate_stack_create(DedicatePool* pool, const DedicateLayer* layers, int64_t num_layers, int64_t hidden_size);
void dedicate_stack_destroy(DedicateStack* stack);
// Runs layers [first, last). False if memory is out: nothing is lost but the step.
int32_t dedicate_stack_run(DedicateStack* stack, const DedicateStep* step, int64_t first, int64_t last);
// Seconds since the last call, by kind: norms and positions, projections, attention, feed-forward network.
void dedicate_stack_timers(DedicateStack* stack, double* seconds);
// Attention alone over one layer's cache, storing keys and values first, for models whose layers are not fused.
// query: (num_tokens, num_heads, head_dim); key, value: (num_tokens, num_kv_heads, head_dim); without gaps.
int32_t dedicate_attend(
    DedicateStack* stack, const DedicateStep* step, const DedicateLayer* layer, const float* query, const float* key,
    const float* value, float* output);
}

namespace dedicate {

namespace {

enum Kind { kElementwise, kProjections, kAttention, kFeedForward, kNumKinds };

const Linear& linear_of(const DedicateLinear* handle) { return *reinterpret_cast<const Linear*>(handle); }

float inverse_root_mean_square(const float* values, int64_t count, float epsilon) {
    Floats squares = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) squares += load(values + i) * load(values + i);
    float total = sum_of(squares);
    for (; i < count; ++i) total += values[i] * values[i];
    return 1.0f / std::sqrt(total / static_cast<float>(count) + epsilon);
}

void normalize(const float* from, const float* weights, int64_t count, float epsilon, float* to) {
    const float scale = inverse_root_mean_square(from, count, epsilon);
    for (int64_t i = 0; i < count; ++i) to[i] = from[i] * scale * weights[i];
}

// Rotates the pairs (i, i + dim / 2).
void rotate(float* head, const float* cosines, const float* sines, int dim) {
    const int half = dim / 2;
    for (int i = 0; i < half; ++i) {
        const float a = head[i];
        const float b = head[i + half];
        head[i] = a * cosines[i] - b * sines[i];
        head[i + half] = b * cosines[i + half] + a * sines[i + half];
    }
}

// Rows whose distance is a multiple of a large power of two would all fall into the same few places of the cache.
int64_t padded_stride(int64_t count) { return count % 256 ? count : count + 16; }

}  // namespace

class Stack {
public:
    Stack(Pool& pool, const DedicateLayer* layers, int64_t num_layers, int64_t hidden_size)
        : pool_(pool), layers_(layers, layers + num_layers), hidden_size_(hidden_size) {}

    bool run(const DedicateStep& step, int64_t first, int64_t last);
    bool attend_alone(
        const DedicateStep& step, const DedicateLayer& layer, const float* query, const float* key, const float* value,
        float* output);
    void take_timers(double* seconds) {
        for (int kind = 0; kind < kNumKinds; ++kind) {
            seconds[kind] = seconds_[kind];
            seconds_[kind] = 0;
        }
    }

private:
    // What the inputs of a projection are handed over in: floats, or int8 where its weights are.
    struct Inputs {
        float* floats;
        int64_t stride;
        QuantizedRows quantized;
    };

    bool reserve(const DedicateStep& step, int64_t first, int64_t last);
    template <typename Body>
    void for_each_token(const DedicateStep& step, Body&& body);
    const AttentionPlan& plan_for(const DedicateLayer& layer) const { return plans_[layer.window != plan_window_]; }
    void run_layer(int thread, const DedicateStep& step, const DedicateLayer& layer);
    void place_token(const DedicateStep& step, const DedicateLayer& layer, int64_t token);
    void hand_over(const Linear& to, const float* values, int64_t count, int64_t row);
    void hand_over_rows(const DedicateStep& step, const Linear& to, const float* norm, float epsilon, const float* from,
                        int64_t from_stride);
    template <Finish kFinish>
    void project(const DedicateStep& step, const Linear& linear, const float* input, int64_t input_stride, float* output,
                 int64_t output_stride, const DedicateLayer& layer);
    void add_branch(const DedicateStep& step, const DedicateLayer& layer, const Linear& linear, const float* norm);
    void lap(int thread, Kind kind);

    Pool& pool_;
    std::vector<DedicateLayer> layers_;
    const int64_t hidden_size_;
    AttentionPlan plans_[2];
    int32_t plan_window_ = 0;
    Rows rows_ = {};
    int64_t input_stride_ = 0;
    int64_t qkv_stride_ = 0;
    int64_t wide_stride_ = 0;
    QuantizedRows quantized_ = {};
    Buffer input_, qkv_, wide_, branch_, quantized_values_, quantized_scales_, partials_;
    double seconds_[kNumKinds] = {};
    std::chrono::steady_clock::time_point lap_start_;

    float* input() const { return static_cast<float*>(input_.data()); }
    float* qkv() const { return static_cast<float*>(qkv_.data()); }
    float* wide() const { return static_cast<float*>(wide_.data()); }
    float* branch() const { return static_cast<float*>(branch_.data()); }
};

void Stack::lap(int thread, Kind kind) {
    if (thread != 0) return;
    const auto now = std::chrono::steady_clock::now();
    seconds_[kind] += std::chrono::duration<double>(now - lap_start_).count();
    lap_start_ = now;
}

// Tokens in runs, for neighbours of one sequence share lines of its cache: two threads must not write them in turn.
template <typename Body>
void Stack::for_each_token(const DedicateStep& step, Body&& body) {
    const int64_t run = std::clamp<int64_t>(step.num_tokens / (4 * pool_.num_threads()), 1, kBlockTokens);
    pool_.for_each((step.num_tokens + run - 1) / run, [&](int64_t item) {
        const int64_t last = std::min((item + 1) * run, step.num_tokens);
        for (int64_t token = item * run; token < last; ++token) body(token);
    });
}

bool Stack::reserve(const DedicateStep& step, int64_t first, int64_t last) {
    int64_t qkv = 0, wide = 0, deepest = hidden_size_, num_partials = 0;
    bool is_quantized = false, has_output_norm = false;
    rows_ = {step.num_rows, step.row_first, step.row_start, step.block_tables, step.table_stride};
    plan_window_ = layers_[first].window;
    bool has_second_plan = false;
    for (int64_t i = first; i < last; ++i) {
        const DedicateLayer& layer = layers_[i];
        const AttentionShape shape = {layer.num_heads, layer.num_kv_heads, layer.head_dim};
        qkv = std::max(qkv, linear_of(layer.qkv).num_panels * kPanel);
        const int64_t gated = linear_of(layer.gate_up).num_panels * (kPanel / 2);
        wide = std::max({wide, gated, static_cast<int64_t>(layer.num_heads) * layer.head_dim});
        deepest = std::max({deepest, linear_of(layer.down).in_features, linear_of(layer.output).in_features});
        is_quantized |= linear_of(layer.qkv).format == Format::kInt8;
        has_output_norm |= layer.attention_output_norm || layer.mlp_output_norm;
        if (i == first || (!has_second_plan && layer.window != plan_window_)) {
            AttentionPlan& plan = plans_[i != first];
            has_second_plan |= i != first;
            plan_attention(plan, shape, rows_, layer.window, pool_.num_threads());
            num_partials = std::max(num_partials, plan.num_partials * partial_floats(shape));
        }
    }
    input_stride_ = padded_stride(hidden_size_);
    qkv_stride_ = padded_stride(qkv);
    wide_stride_ = padded_stride(wide);
    bool is_enough = input_.reserve(step.num_tokens * input_stride_ * 4) &&
                     qkv_.reserve(step.num_tokens * qkv_stride_ * 4) &&
                     wide_.reserve(step.num_tokens * wide_stride_ * 4) && partials_.reserve(num_partials * 4 + 64);
    if (has_output_norm) is_enough &= branch_.reserve(step.num_tokens * input_stride_ * 4);
    if (is_quantized) {
        const int64_t padded_rows = (step.num_tokens + 31) / 32 * 32;
        is_enough &= quantized_values_.reserve(padded_rows * quantized_stride(deepest)) &&
                     quantized_scales_.reserve(padded_rows * 4);
        quantized_.values = static_cast<int8_t*>(quantized_values_.data());
        quantized_.scales = static_cast<float*>(quantized_scales_.data());
    }
    return is_enough;
}

bool Stack::run(const DedicateStep& step, int64_t first, int64_t last) {
    if (!reserve(step, first, last)) return false;
    struct Task {
        Stack* stack;
        const DedicateStep* step;
        int64_t first, last;
    } task{this, &step, first, last};
    lap_start_ = std::chrono::steady_clock::now();
    pool_.run(
        [](void* context, int thread) {
            const Task& task = *static_cast<Task*>(context);
            for (int64_t i = task.first; i < task.last; ++i) {
                task.stack->run_layer(thread, *task.step, task.stack->layers_[i]);
            }
        },
        &task);
    return true;
}

void Stack::hand_over(const Linear& to, const float* values, int64_t count, int64_t row) {
    if (to.format == Format::kInt8) {
        QuantizedRows rows = quantized_;
        rows.stride = quantized_stride(to.in_features);
        quantize_row(values, count, row, rows);
    } else if (values != input() + row * input_stride_) {
        std::memcpy(input() + row * input_stride_, values, count * sizeof(float));
    }
}

// Normalizes rows where there is a norm, and brings them to where `to` reads its inputs.
void Stack::hand_over_rows(
    const DedicateStep& step, const Linear& to, const float* norm, float epsilon, const float* from, int64_t from_stride) {
    for_each_token(step, [&](int64_t token) {
        const float* row = from + token * from_stride;
        float* normalized = input() + token * input_stride_;
        if (norm) normalize(row, norm, to.in_features, epsilon, normalized);
        hand_over(to, norm ? normalized : row, to.in_features, token);
    });
}

template <Finish kFinish>
void Stack::project(
    const DedicateStep& step, const Linear& linear, const float* input, int64_t input_stride, float* output,
    int64_t output_stride, const DedicateLayer& layer) {
    LinearCall call = {};
    call.linear = &linear;
    call.input = input;
    call.input_stride = input_stride;
    call.quantized = quantized_;
    call.quantized.stride = quantized_stride(linear.in_features);
    call.num_rows = step.num_tokens;
    call.output = output;
    call.output_stride = output_stride;
    call.scale = layer.residual_scale;
    call.activation = static_cast<Activation>(layer.activation);
    apply_linear<kFinish>(pool_, call);
}

// hidden += scale * norm(linear(wide)), the end of both halves of a layer.
void Stack::add_branch(const DedicateStep& step, const DedicateLayer& layer, const Linear& linear, const float* norm) {
    if (linear.format == Format::kInt8) hand_over_rows(step, linear, nullptr, 0, wide(), wide_stride_);
    if (!norm) {
        project<Finish::kAdd>(step, linear, wide(), wide_stride_, step.hidden, hidden_size_, layer);
        return;
    }
    project<Finish::kStore>(step, linear, wide(), wide_stride_, branch(), input_stride_, layer);
    for_each_token(step, [&](int64_t token) {
        float* row = branch() + token * input_stride_;
        float* hidden = step.hidden + token * hidden_size_;
        normalize(row, norm, hidden_size_, layer.norm_epsilon, row);
        for (int64_t i = 0; i < hidden_size_; ++i) hidden[i] += layer.residual_scale * row[i];
    });
}

// Norms and rotates one token's queries and keys and stores its keys and values in the cache.
void Stack::place_token(const DedicateStep& step, const DedicateLayer& layer, int64_t token) {
    const int head_dim = layer.head_dim;
    float* queries = qkv() + token * qkv_stride_;
    float* keys = queries + static_cast<int64_t>(layer.num_heads) * head_dim;
    float* values = keys + static_cast<int64_t>(layer.num_kv_heads) * head_dim;
    const int64_t num_queries = static_cast<int64_t>(layer.num_heads) * head_dim;
    const int64_t num_keys = static_cast<int64_t>(layer.num_kv_heads) * head_dim;
    if (layer.query_norm) {
        const int64_t query_width = layer.query_norm_is_whole ? num_queries : head_dim;
        const int64_t key_width = layer.query_norm_is_whole ? num_keys : head_dim;
        for (int64_t i = 0; i < num_queries; i += query_width) {
            normalize(queries + i, layer.query_norm, query_width, layer.norm_epsilon, queries + i);
        }
        for (int64_t i = 0; i < num_keys; i += key_width) {
            normalize(keys + i, layer.key_norm, key_width, layer.norm_epsilon, keys + i);
        }
    }
    if (layer.rotary_dim) {
        const float* cosines = step.cosines + token * layer.rotary_dim;
        const float* sines = step.sines + token * layer.rotary_dim;
        for (int64_t i = 0; i < num_queries + num_keys; i += head_dim) {
            rotate(queries + i, cosines, sines, layer.rotary_dim);
        }
    }
    const AttentionShape shape = {layer.num_heads, layer.num_kv_heads, layer.head_dim};
    const int64_t slot = step.slots[token];
    store_token(shape, slot / kBlockTokens, slot % kBlockTokens, keys, values, layer.keys, layer.values);
}

void Stack::run_layer(int thread, const DedicateStep& step, const DedicateLayer& layer) {
    const Linear& qkv_linear = linear_of(layer.qkv);
    const Linear& gate_up = linear_of(layer.gate_up);
    hand_over_rows(step, qkv_linear, layer.attention_norm, layer.norm_epsilon, step.hidden, hidden_size_);
    lap(thread, kElementwise);
    project<Finish::kStore>(step, qkv_linear, input(), input_stride_, qkv(), qkv_stride_, layer);
    lap(thread, kProjections);
    for_each_token(step, [&](int64_t token) { place_token(step, layer, token); });
    lap(thread, kElementwise);
    AttentionCall call = {};
    call.shape = {layer.num_heads, layer.num_kv_heads, layer.head_dim};
    call.rows = &rows_;
    call.plan = &plan_for(layer);
    call.queries = qkv();
    call.query_stride = qkv_stride_;
    call.output = wide();
    call.output_stride = wide_stride_;
    call.keys = layer.keys;
    call.values = layer.values;
    call.scaling = layer.scaling;
    call.window = layer.window;
    call.partials = static_cast<float*>(partials_.data());
    attend(pool_, call);
    lap(thread, kAttention);
    add_branch(step, layer, linear_of(layer.output), layer.attention_output_norm);
    lap(thread, kProjections);
    hand_over_rows(step, gate_up, layer.mlp_norm, layer.norm_epsilon, step.hidden, hidden_size_);
    lap(thread, kElementwise);
    project<Finish::kGate>(step, gate_up, input(), input_stride_, wide(), wide_stride_, layer);
    add_branch(step, layer, linear_of(layer.down), layer.mlp_output_norm);
    lap(thread, kFeedForward);
}

bool Stack::attend_alone(
    const DedicateStep& step, const DedicateLayer& layer, const float* query, const float* key, const float* value,
    float* output) {
    const AttentionShape shape = {layer.num_heads, layer.num_kv_heads, layer.head_dim};
    rows_ = {step.num_rows, step.row_first, step.row_start, step.block_tables, step.table_stride};
    plan_attention(plans_[0], shape, rows_, layer.window, pool_.num_threads());
    if (!partials_.reserve(plans_[0].num_partials * partial_floats(shape) * 4 + 64)) return false;
    struct Task {
        Stack* stack;
        const DedicateStep* step;
        const DedicateLayer* layer;
        const float* key;
        const float* value;
        AttentionCall call;
    } task{this, &step, &layer, key, value, {}};
    task.call = {
        shape, &rows_, &plans_[0], query, static_cast<int64_t>(layer.num_heads) * layer.head_dim, output,
        static_cast<int64_t>(layer.num_heads) * layer.head_dim, layer.keys, layer.values, layer.scaling, layer.window,
        static_cast<float*>(partials_.data())};
    pool_.run(
        [](void* context, int) {
            const Task& task = *static_cast<Task*>(context);
            const AttentionShape& shape = task.call.shape;
            const int64_t width = static_cast<int64_t>(shape.num_kv_heads) * shape.head_dim;
            Pool& pool = task.stack->pool_;
            pool.for_each(task.step->num_tokens, [&](int64_t token) {
                const int64_t slot = task.step->slots[token];
                store_token(
                    shape, slot / kBlockTokens, slot % kBlockTokens, task.key + token * width, task.value + token * width,
                    task.layer->keys, task.layer->values);
            });
            attend(pool, task.call);
        },
        &task);
    return true;
}

}  // namespace dedicate

using dedicate::Stack;

extern "C" {

DedicateStack* dedicate_stack_create(
    DedicatePool* pool, const DedicateLayer* layers, int64_t num_layers, int64_t hidden_size) {
    return reinterpret_cast<DedicateStack*>(
        new Stack(*reinterpret_cast<dedicate::Pool*>(pool), layers, num_layers, hidden_size));
}

void dedicate_stack_destroy(DedicateStack* stack) { delete reinterpret_cast<Stack*>(stack); }

int32_t dedicate_stack_run(DedicateStack* stack, const DedicateStep* step, int64_t first, int64_t last) {
    return reinterpret_cast<Stack*>(stack)->run(*step, first, last);
}

void dedicate_stack_timers(DedicateStack* stack, double* seconds) {
    reinterpret_cast<Stack*>(stack)->take_timers(seconds);
}

int32_t dedicate_attend(
    DedicateStack* stack, const DedicateStep* step, const DedicateLayer* layer, const float* query, const float* key,
    const float* value, float* output) {
    return reinterpret_cast<Stack*>(stack)->attend_alone(*step, *layer, query, key, value, output);
}

}  // extern "C"
