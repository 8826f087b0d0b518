#include "core/pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace headrace {
namespace {

constexpr auto spin_limit = std::chrono::microseconds(50);

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A range of chunks, [first, last) in one word: its owner takes from the front, others from the back.
struct alignas(64) Range {
    std::atomic<uint64_t> ends{0};

    static uint64_t pack(uint32_t first, uint32_t last) { return uint64_t(first) << 32 | last; }

    void set(uint32_t first, uint32_t last) { ends.store(pack(first, last), std::memory_order_relaxed); }

    bool take_front(uint32_t& chunk) {
        uint64_t seen = ends.load(std::memory_order_relaxed);
        for (;;) {
            const uint32_t first = uint32_t(seen >> 32), last = uint32_t(seen);
            if (first >= last) return false;
            if (ends.compare_exchange_weak(seen, pack(first + 1, last), std::memory_order_relaxed)) {
                chunk = first;
                return true;
            }
        }
    }

    bool take_back(uint32_t& chunk) {
        uint64_t seen = ends.load(std::memory_order_relaxed);
        for (;;) {
            const uint32_t first = uint32_t(seen >> 32), last = uint32_t(seen);
            if (first >= last) return false;
            if (ends.compare_exchange_weak(seen, pack(first, last - 1), std::memory_order_relaxed)) {
                chunk = last - 1;
                return true;
            }
        }
    }
};

}  // namespace

struct Pool::State {
    std::mutex callers;  // one job at a time
    int n_threads = 1;
    std::vector<std::thread> helpers;
    std::vector<Range> ranges;

    Work work = nullptr;
    const void* job = nullptr;

    // Odd while a job is open to helpers. Written under `sleep` as well, so that a sleeper cannot miss it.
    std::atomic<uint64_t> epoch{0};
    std::atomic<int> inside{0};      // helpers that may touch the job
    std::atomic<int64_t> left{0};    // chunks not yet done
    std::atomic<int> sleepers{0};
    std::atomic<bool> closing{false};
    std::mutex sleep;
    std::condition_variable wake;

    void compute(int thread) {
        uint32_t chunk;
        int64_t done = 0;
        while (ranges[thread].take_front(chunk)) {
            work(job, chunk, thread);
            ++done;
        }
        for (size_t step = 1; step < ranges.size(); ++step) {
            Range& other = ranges[(thread + step) % ranges.size()];
            while (other.take_back(chunk)) {
                work(job, chunk, thread);
                ++done;
            }
        }
        // Releases the results of these chunks to whoever sees the count.
        if (done) left.fetch_sub(done, std::memory_order_acq_rel);
    }

    void serve(int thread) {
        uint64_t seen = 0;
        while (wait_for_job(seen)) {
            inside.fetch_add(1, std::memory_order_seq_cst);
            // The job may have ended between the look and the entry: then its data must not be touched.
            const uint64_t now = epoch.load(std::memory_order_seq_cst);
            seen = now;
            if (now & 1) compute(thread);
            inside.fetch_sub(1, std::memory_order_release);
        }
    }

    // Returns false when the pool closes.
    bool wait_for_job(uint64_t seen) {
        const auto limit = std::chrono::steady_clock::now() + spin_limit;
        for (int turn = 0;; ++turn) {
            const uint64_t now = epoch.load(std::memory_order_acquire);
            if (closing.load(std::memory_order_acquire)) return false;
            if ((now & 1) && now != seen) return true;
            relax();
            if ((turn & 15) == 15 && std::chrono::steady_clock::now() > limit) break;
        }
        std::unique_lock lock(sleep);
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        wake.wait(lock, [&] {
            const uint64_t now = epoch.load(std::memory_order_seq_cst);
            return closing.load(std::memory_order_acquire) || ((now & 1) && now != seen);
        });
        sleepers.fetch_sub(1, std::memory_order_relaxed);
        return !closing.load(std::memory_order_acquire);
    }

    void open() {
        epoch.fetch_add(1, std::memory_order_seq_cst);
        if (sleepers.load(std::memory_order_seq_cst) > 0) {
            { std::lock_guard lock(sleep); }
            wake.notify_all();
        }
    }

    // Returns when no chunk is under way and no helper is inside.
    void close_job() {
        for (int turn = 0; left.load(std::memory_order_acquire) > 0; ++turn) pause(turn);
        epoch.fetch_add(1, std::memory_order_seq_cst);
        for (int turn = 0; inside.load(std::memory_order_seq_cst) > 0; ++turn) pause(turn);
    }

    // A helper that was sent off the CPU in the middle of a chunk gets the CPU from us when there is just one.
    static void pause(int turn) {
        if (turn < 2000)
            relax();
        else
            std::this_thread::yield();
    }

    void start() {
        while (int(helpers.size()) + 1 < n_threads) {
            const int thread = int(helpers.size()) + 1;
            helpers.emplace_back([this, thread] { serve(thread); });
        }
    }

    void stop() {
        {
            std::lock_guard lock(sleep);
            closing.store(true, std::memory_order_release);
        }
        wake.notify_all();
        for (auto& helper : helpers) helper.join();
        helpers.clear();
        closing.store(false, std::memory_order_release);
    }
};

Pool& Pool::instance() {
    // Never destroyed: a helper may still wait when the process's statics go.
    static Pool* pool = new Pool;
    return *pool;
}

Pool::Pool() : state_(std::make_unique<State>()) { state_->ranges = std::vector<Range>(1); }

Pool::~Pool() { state_->stop(); }

void Pool::set_threads(int n) {
    if (n < 1) throw std::invalid_argument("a pool has at least one thread");
    std::lock_guard lock(state_->callers);
    if (n == state_->n_threads) return;
    state_->stop();
    state_->n_threads = n;
    state_->ranges = std::vector<Range>(size_t(n));
}

int Pool::threads() const { return state_->n_threads; }

void Pool::run(Work work, const void* job, int64_t n_chunks) {
    State& s = *state_;
    std::lock_guard lock(s.callers);
    if (n_chunks <= 1 || s.n_threads == 1) {
        for (int64_t chunk = 0; chunk < n_chunks; ++chunk) work(job, chunk, 0);
        return;
    }
    if (n_chunks > INT32_MAX) throw std::invalid_argument("a job has too many chunks");
    s.start();
    s.work = work;
    s.job = job;
    s.left.store(n_chunks, std::memory_order_relaxed);
    for (int thread = 0; thread < s.n_threads; ++thread)
        s.ranges[size_t(thread)].set(uint32_t(n_chunks * thread / s.n_threads),
                                     uint32_t(n_chunks * (thread + 1) / s.n_threads));
    s.open();
    s.compute(0);
    s.close_job();
}

}  // namespace headrace
