// Threads that work through one list of phases together. A phase is a number of independent items; its items are claimed one after
// another by whoever is free, and a phase begins when every item of the one before is done.
//
// Nobody waits for a thread that has claimed nothing: where another process holds a core, the others do its share. (A barrier at
// the end of every product, as parallel loops have it, waits for the scheduler of the operating system instead: measured at twenty
// times the step's time on two shared cores.) One parallel region of OpenMP a call, with the runtime that PyTorch has loaded.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#if defined(_OPENMP)
#include <omp.h>
#include <sched.h>
#endif

namespace lionrock {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

struct alignas(128) Counters {  // two cache lines: neighbours are prefetched in pairs
    std::atomic<int64_t> next;
    std::atomic<int64_t> done;
};

// What one thread holds of a call.
class Worker {
   public:
    Worker(Counters* counters, int threads) : phase_(counters), threads_(threads) {}

    int threads() const { return threads_; }

    // Run `work(first, last)` over items 0 … count − 1 together with the other threads, `grain` at a time; return when all are done.
    template <class Work>
    void phase(int64_t count, int64_t grain, Work&& work) {
        if (threads_ == 1) {
            if (count > 0) work(int64_t(0), count);
            return;
        }
        Counters& counters = *phase_++;
        while (counters.next.load(std::memory_order_relaxed) < count) {
            int64_t first = counters.next.fetch_add(grain, std::memory_order_relaxed);
            if (first >= count) break;
            int64_t last = first + grain < count ? first + grain : count;
            work(first, last);
            counters.done.fetch_add(last - first, std::memory_order_release);
        }
        for (int spins = 0; counters.done.load(std::memory_order_acquire) < count; ++spins) {
            relax();
            if (spins > SPINS) yield();
        }
    }

   private:
    static constexpr int SPINS = 20000;  // some hundred microseconds, beyond the longest item

    static void yield() {
#if defined(_OPENMP)
        sched_yield();
#endif
    }

    Counters* phase_;
    int threads_;
};

// Run `body(worker)` on up to `threads` threads; every thread meets the same phases, at most `phases` of them.
template <class Body>
void together(int threads, int64_t phases, Body&& body) {
#if defined(_OPENMP)
    if (threads > 1) {
        std::unique_ptr<Counters[]> counters(new Counters[phases]());
#pragma omp parallel num_threads(threads)
        {
            // Were the runtime to give fewer threads, the others would take their share.
            Worker worker(counters.get(), threads);
            body(worker);
        }
        return;
    }
#endif
    (void)threads;
    (void)phases;
    Worker worker(nullptr, 1);
    body(worker);
}

// A grain that leaves every thread some sixteen turns, so that they end at nearly the same time.
inline int64_t grain_of(int64_t count, int threads) {
    int64_t grain = count / (16 * int64_t(threads));
    return grain > 1 ? grain : 1;
}

}  // namespace lionrock
