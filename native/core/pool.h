// The thread pool: one job at a time, cut into chunks that any thread may take.
#pragma once

#include <cstdint>
#include <memory>

namespace headrace {

// Every thread starts with a home range of chunks, the same for the same number of chunks, so that it streams the same
// weights every step; when it is done it takes chunks from the end of the others' ranges. Which thread computes a chunk
// cannot change a result: chunks write apart from one another.
class Pool {
  public:
    using Work = void (*)(const void* job, int64_t chunk, int thread);

    // The process's pool. Threads start with the first job.
    static Pool& instance();

    // How many threads compute, the caller's among them. Waits for the job under way. Throws std::invalid_argument
    // for less than one.
    void set_threads(int n);
    int threads() const;

    // Calls work(job, chunk, thread) for every chunk in [0, n_chunks) and returns when all are done. The caller's thread
    // works too. Jobs of several callers run one after another.
    void run(Work work, const void* job, int64_t n_chunks);

    // The same for a callable f(chunk, thread).
    template <class F>
    void each(int64_t n_chunks, const F& f) {
        run([](const void* job, int64_t chunk, int thread) { (*static_cast<const F*>(job))(chunk, thread); }, &f, n_chunks);
    }

    ~Pool();

  private:
    Pool();
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace headrace
