// The pool: every chunk once, whoever takes it; jobs from several threads; sizes changed between jobs.
#include "core/pool.h"

#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "tests/check.h"

using headrace::Pool;

namespace {

// Plain ints: the sanitizer sees a race if two threads touch a chunk, or if run() returns too early.
void every_chunk_once(std::mt19937& random) {
    const int64_t n = int64_t(random() % 200);
    std::vector<int> times(size_t(n), 0);
    const bool uneven = random() % 4 == 0;
    Pool::instance().each(n, [&](int64_t chunk, int thread) {
        CHECK(thread >= 0 && thread < Pool::instance().threads());
        if (uneven && chunk % 17 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
        ++times[size_t(chunk)];
    });
    for (int count : times) CHECK(count == 1);
}

void after_a_rest() {
    std::mt19937 random(1);
    for (int i = 0; i < 20; ++i) {
        std::this_thread::sleep_for(std::chrono::microseconds(300));  // the helpers have gone to sleep
        every_chunk_once(random);
    }
}

// Jobs so short that helpers come and go while the next one is already being laid out.
void many_small_jobs() {
    for (int i = 0; i < 100000; ++i) {
        int times[4] = {};
        const int64_t n = 2 + i % 3;
        Pool::instance().each(n, [&](int64_t chunk, int) { ++times[chunk]; });
        for (int64_t chunk = 0; chunk < n; ++chunk) CHECK(times[chunk] == 1);
    }
}

void several_callers() {
    std::vector<std::thread> callers;
    for (unsigned seed = 0; seed < 3; ++seed)
        callers.emplace_back([seed] {
            std::mt19937 random(seed);
            for (int i = 0; i < 300; ++i) every_chunk_once(random);
        });
    for (auto& caller : callers) caller.join();
}

}  // namespace

int main() {
    std::mt19937 random(0);
    for (int threads : {1, 2, 3, 8, 2, 1, 4}) {
        Pool::instance().set_threads(threads);
        CHECK(Pool::instance().threads() == threads);
        for (int i = 0; i < 500; ++i) every_chunk_once(random);
        after_a_rest();
        many_small_jobs();
        several_callers();
    }
    std::puts("ok");
    return 0;
}
