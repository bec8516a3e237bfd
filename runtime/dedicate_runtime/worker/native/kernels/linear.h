// Linear layers over weights that are packed once, in float32 or int8.
//
// Weights lie in panels of 32 output features, each panel one stretch of memory that is read from front to back:
//
//   float32  panel[in_features][32]
//   int8     panel[in_features / 64][2 halves][16 groups of 4 inputs][16 outputs][4 inputs], padded with zeros to 64 inputs
//
// int8: each output feature's weights share one scale; each token's inputs are quantized to one scale of their own when
// they arrive, and the sum of products is taken in integers. Before either is rounded, both are rotated in groups of 64
// inputs by the same Hadamard matrix. It is orthogonal, so products stay what they are, but a single large input, which
// would take all of the scale for itself, is spread over its group. Source: QuaRot, https://arxiv.org/abs/2404.00456.
//
// Every output is summed over the inputs in one order, whatever the number of tokens: a token's result does not depend
// on its company.
#pragma once

#include <cstdint>

#include "pool.h"

namespace dedicate {

constexpr int kPanel = 32;

enum class Format : int32_t { kFloat32 = 0, kInt8 = 1 };

enum class Activation : int32_t { kSilu = 0, kGeluTanh = 1 };

// What happens to a token's outputs.
enum class Finish {
    kStore,  // y = x W + b
    kAdd,    // y += scale * (x W + b)
    kGate,   // y = activation(gate) * up, where each panel holds 16 gates and their 16 ups
};

struct Linear {
    Format format;
    int64_t in_features;
    int64_t out_features;
    int64_t num_panels;
    int64_t panel_bytes;
    char* panels;
    float* bias;            // padded to whole panels; null for none
    float* scales;          // int8: one for each output feature
    int32_t* column_sums;   // int8: sum of each output feature's quantized weights
};

// Quantized inputs of a step: rows of `stride` int8, a multiple of 64, padded with zeros to a multiple of 16 rows.
struct QuantizedRows {
    int8_t* values;
    float* scales;
    int64_t stride;
};

struct LinearCall {
    const Linear* linear;
    const float* input;  // float32: (num_rows, in_features), rows `input_stride` apart
    int64_t input_stride;
    QuantizedRows quantized;  // int8, instead of `input`
    int64_t num_rows;
    float* output;
    int64_t output_stride;
    float scale = 1.0f;
    Activation activation = Activation::kSilu;
};

int64_t quantized_stride(int64_t in_features);

// Quantizes one row of `count` inputs.
void quantize_row(const float* input, int64_t count, int64_t row, const QuantizedRows& to);

// To be called by all threads of the pool; all outputs are there when it returns.
template <Finish kFinish>
void apply_linear(Pool& pool, const LinearCall& call);

}  // namespace dedicate

extern "C" {
struct DedicateLinear;
// weights: (out_features, in_features) float32, rows adjacent. bias: (out_features,) or null. Null if memory is out.
DedicateLinear* dedicate_linear_pack(
    DedicatePool* pool, int32_t format, const float* weights, const float* bias, int64_t out_features, int64_t in_features);
void dedicate_linear_free(DedicateLinear* linear);
// input: (num_rows, in_features), output: (num_rows, out_features), float32 without gaps. False if memory is out.
int32_t dedicate_linear_apply(
    DedicatePool* pool, const DedicateLinear* linear, const float* input, int64_t num_rows, float* output);
}
