// A team of threads that works through one step together.
//
// Loops hand out their items one by one, so a thread whose core is taken away holds up the others by one item and no
// more. A waiting thread spins for a few microseconds, the usual distance between threads at the end of a loop, and then
// sleeps: on a machine whose cores have other work, a core that spins is a core that the late thread cannot have.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace dedicate {

class Pool {
public:
    // `num_threads` counts the caller of `run`.
    explicit Pool(int num_threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int num_threads() const { return num_threads_; }

    // Calls `work(context, thread)` in every thread and returns when all have come back. One caller at a time.
    void run(void (*work)(void* context, int thread), void* context);

    // The rest is for code that `run` has called, in all threads alike.

    // Waits for all threads; the items of the next loop start at 0 afterwards.
    void barrier();

    int64_t take_item() { return next_item_.fetch_add(1, std::memory_order_relaxed); }

    // Calls `body(item)` for each item in [0, count) in whichever thread is free; all are done when it returns.
    template <typename Body>
    void for_each(int64_t count, Body&& body) {
        for (int64_t item = take_item(); item < count; item = take_item()) body(item);
        barrier();
    }

private:
    void serve(int thread);
    void wait_for(std::atomic<uint32_t>& word, uint32_t old);

    const int num_threads_;
    alignas(64) std::atomic<int64_t> next_item_{0};
    alignas(64) std::atomic<int32_t> num_arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<uint32_t> generation_{0};
    alignas(64) std::atomic<int32_t> num_sleepers_{0};
    void (*work_)(void*, int) = nullptr;
    void* context_ = nullptr;
    bool is_ending_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace dedicate

extern "C" {
struct DedicatePool;
DedicatePool* dedicate_pool_create(int num_threads);
void dedicate_pool_destroy(DedicatePool* pool);
// Calls `body(context, item, thread)` for each item in [0, count).
void dedicate_parallel_for(DedicatePool* pool, int64_t count, void (*body)(void*, int64_t, int), void* context);
}
