// A loop whose iterations are handed out one at a time: each writes its own results, so their order does not matter.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace lmn {

// How many workers are worth their start, of at most so many, for so many nanoseconds of work.
inline int workers_for(double nanoseconds, int most) {
    constexpr double kWorthAStart = 300'000;
    return nanoseconds < 2 * kWorthAStart ? 1 : int(std::min<double>(most, nanoseconds / kWorthAStart));
}

// Calls body(index, worker) for first <= index < last on `workers` threads, this one among them. When it has nothing left to
// do, this one calls idle() now and then until the others are done.
template <class Body, class Idle>
void parallel_for(int64_t first, int64_t last, int workers, Body body, Idle idle) {
    std::atomic<int64_t> next{first};
    std::exception_ptr failure;
    std::mutex mutex;
    std::condition_variable done;
    int busy = 0;
    const auto work = [&](int worker) {
        try {
            for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < last;) body(i, worker);
        } catch (...) {
            const std::lock_guard lock(mutex);
            if (!failure) failure = std::current_exception();
            next = last;
        }
    };
    {
        std::vector<std::jthread> threads;
        for (int worker = 1; worker < workers && worker < last - first; ++worker) {
            {
                const std::lock_guard lock(mutex);
                ++busy;
            }
            threads.emplace_back([&, worker] {
                work(worker);
                const std::lock_guard lock(mutex);
                --busy;
                done.notify_one();
            });
        }
        work(0);
        std::unique_lock lock(mutex);
        while (!done.wait_for(lock, std::chrono::milliseconds(20), [&] { return busy == 0; })) {
            lock.unlock();
            idle();
            lock.lock();
        }
    }
    if (failure) std::rethrow_exception(failure);
}

template <class Body>
void parallel_for(int64_t first, int64_t last, int workers, Body body) {
    parallel_for(first, last, workers, body, [] {});
}

}  // namespace lmn
