// Memory for weights and for what a step needs. Large pages: weights are read whole in every step, and with small ones
// the look-up of addresses would be what is waited for.
#pragma once

#include <cstdint>
#include <cstdlib>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dedicate {

constexpr int64_t kLargePage = 2 << 20;

inline int64_t whole_pages(int64_t num_bytes) { return (num_bytes + kLargePage - 1) / kLargePage * kLargePage; }

// Whatever was there before; null if there is no memory. `std::free` gives it back.
inline void* allocate_pages(int64_t num_bytes) {
    const int64_t size = num_bytes >= kLargePage ? whole_pages(num_bytes) : (num_bytes + 63) / 64 * 64 + 64;
    void* memory = std::aligned_alloc(num_bytes >= kLargePage ? kLargePage : 64, size);
#if defined(__linux__)
    if (memory && num_bytes >= kLargePage) madvise(memory, size, MADV_HUGEPAGE);
#endif
    return memory;
}

// Memory that grows to the largest step that was seen.
class Buffer {
public:
    Buffer() = default;
    ~Buffer() { std::free(memory_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    // False if there is no memory; what was there is lost either way if it grows.
    bool reserve(int64_t num_bytes) {
        if (num_bytes <= capacity_) return true;
        std::free(memory_);
        memory_ = allocate_pages(num_bytes);
        capacity_ = memory_ ? num_bytes : 0;
        return memory_ != nullptr;
    }

    void* data() const { return memory_; }

private:
    void* memory_ = nullptr;
    int64_t capacity_ = 0;
};

}  // namespace dedicate
