#include "pool.h"

#include <climits>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dedicate {

namespace {

// About twenty microseconds, many times what a barrier takes when every thread has its core; arbitrary otherwise.
constexpr int kSpins = 2000;

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#if defined(__linux__)
void sleep_while(std::atomic<uint32_t>& word, uint32_t old) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
}
void wake_all(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}
#else
void sleep_while(std::atomic<uint32_t>&, uint32_t) { std::this_thread::yield(); }
void wake_all(std::atomic<uint32_t>&) {}
#endif

}  // namespace

Pool::Pool(int num_threads) : num_threads_(num_threads < 1 ? 1 : num_threads) {
    for (int thread = 1; thread < num_threads_; ++thread) threads_.emplace_back([this, thread] { serve(thread); });
}

Pool::~Pool() {
    is_ending_ = true;
    generation_.fetch_add(1);
    wake_all(generation_);
    for (std::thread& thread : threads_) thread.join();
}

void Pool::wait_for(std::atomic<uint32_t>& word, uint32_t old) {
    for (int spin = 0; spin < kSpins; ++spin) {
        if (word.load(std::memory_order_acquire) != old) return;
        relax();
    }
    num_sleepers_.fetch_add(1);
    while (word.load(std::memory_order_seq_cst) == old) sleep_while(word, old);
    num_sleepers_.fetch_sub(1);
}

void Pool::barrier() {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < num_threads_) {
        wait_for(phase_, phase);
        return;
    }
    num_arrived_.store(0, std::memory_order_relaxed);
    next_item_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_seq_cst);
    if (num_sleepers_.load(std::memory_order_seq_cst)) wake_all(phase_);
}

void Pool::run(void (*work)(void*, int), void* context) {
    work_ = work;
    context_ = context;
    generation_.fetch_add(1, std::memory_order_seq_cst);
    if (num_sleepers_.load(std::memory_order_seq_cst)) wake_all(generation_);
    work(context, 0);
    barrier();
}

void Pool::serve(int thread) {
    for (uint32_t generation = 0;; ++generation) {
        wait_for(generation_, generation);
        if (is_ending_) return;
        work_(context_, thread);
        barrier();
    }
}

}  // namespace dedicate

using dedicate::Pool;

extern "C" {

DedicatePool* dedicate_pool_create(int num_threads) {
    return reinterpret_cast<DedicatePool*>(new Pool(num_threads));
}

void dedicate_pool_destroy(DedicatePool* pool) { delete reinterpret_cast<Pool*>(pool); }

void dedicate_parallel_for(DedicatePool* handle, int64_t count, void (*body)(void*, int64_t, int), void* context) {
    struct Loop {
        Pool* pool;
        int64_t count;
        void (*body)(void*, int64_t, int);
        void* context;
    } loop{reinterpret_cast<Pool*>(handle), count, body, context};
    loop.pool->run(
        [](void* data, int thread) {
            const Loop& loop = *static_cast<Loop*>(data);
            loop.pool->for_each(loop.count, [&](int64_t item) { loop.body(loop.context, item, thread); });
        },
        &loop);
}

}  // extern "C"
