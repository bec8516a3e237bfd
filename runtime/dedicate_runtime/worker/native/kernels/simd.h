// Vectors of floats in the width of the instruction set that this file is compiled for, and the few functions on them
// that the kernels need. GCC's vector extensions keep the code free of intrinsics, so it compiles for any machine.
#pragma once

#include <cstdint>
#include <cstring>

namespace dedicate {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));
// Memory is aligned to floats, not to vectors.
typedef float FloatsInMemory __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

static inline Floats load(const float* from) { return *reinterpret_cast<const FloatsInMemory*>(from); }
static inline void store(float* to, Floats values) { *reinterpret_cast<FloatsInMemory*>(to) = values; }
static inline Floats broadcast(float value) { return value - Floats{}; }

static inline Floats choose(Ints condition, Floats yes, Floats no) {
    return (Floats)((condition & (Ints)yes) | (~condition & (Ints)no));
}
static inline Floats maximum(Floats a, Floats b) { return choose(a > b, a, b); }
static inline Floats minimum(Floats a, Floats b) { return choose(a < b, a, b); }

static inline float sum_of(Floats values) {
    float total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += values[lane];
    return total;
}

static inline float maximum_of(Floats values) {
    float best = values[0];
    for (int lane = 1; lane < kLanes; ++lane) best = values[lane] > best ? values[lane] : best;
    return best;
}

// e^x to 2 units in the last place for x <= 88; 0 below -87, 1 exactly at 0, NaN for NaN.
static inline Floats exponential(Floats x) {
    const Floats kept = x;
    x = maximum(minimum(x, broadcast(88.0f)), broadcast(-87.5f));
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
    const Floats magic = broadcast(12582912.0f);
    const Floats shifted = x * broadcast(1.44269504f) + magic;
    const Floats n = shifted - magic;
    const Floats r = (x - n * broadcast(0.693359375f)) - n * broadcast(-2.12194440e-4f);
    // Taylor's series to the sixth power: |r| <= ln 2 / 2 leaves 1.2e-7.
    Floats p = broadcast(1.0f / 720);
    p = p * r + broadcast(1.0f / 120);
    p = p * r + broadcast(1.0f / 24);
    p = p * r + broadcast(1.0f / 6);
    p = p * r + broadcast(0.5f);
    p = p * r + broadcast(1.0f);
    p = p * r + broadcast(1.0f);
    const Ints exponent = (Ints)shifted << 23;
    Floats result = (Floats)((Ints)p + exponent);
    result = choose(kept < broadcast(-87.0f), Floats{}, result);
    return choose(kept == kept, result, kept);
}

}  // namespace dedicate
