// A recorded step: the jobs of one forward pass with their fixed pointers, run again in order for another number of
// tokens. The counterpart of a CUDA graph on the CPU.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <typeinfo>
#include <utility>
#include <vector>

namespace headrace {

class Tape {
  public:
    // While one is recording on this thread, every job submitted there is kept.
    static Tape*& recording() {
        thread_local Tape* tape = nullptr;
        return tape;
    }

    // Starts to record a pass over n_tokens. Throws std::logic_error if one is recording already.
    void begin(int64_t n_tokens) {
        if (recording()) throw std::logic_error("a tape is recording already");
        recording() = this;
        n_tokens_ = n_tokens;
    }

    void end() { recording() = nullptr; }

    // Keeps a job of n_rows, a multiple of the tokens of the pass: so many rows for each token.
    template <class Run>
    void keep(const std::type_info& kind, int64_t n_rows, Run run) {
        if (n_rows % n_tokens_) throw std::logic_error("a job's rows are no multiple of the step's tokens");
        const int64_t rows_per_token = n_rows / n_tokens_;
        steps_.push_back({&kind, [run, rows_per_token](int64_t n_tokens) { run(n_tokens * rows_per_token); }});
    }

    void replay(int64_t n_tokens) const {
        for (const auto& step : steps_) step.run(n_tokens);
    }

    // The same, with the type of each job and the nanoseconds that it took.
    std::vector<std::pair<const std::type_info*, int64_t>> replay_timed(int64_t n_tokens) const {
        using Clock = std::chrono::steady_clock;
        std::vector<std::pair<const std::type_info*, int64_t>> times;
        times.reserve(steps_.size());
        auto before = Clock::now();
        for (const auto& step : steps_) {
            step.run(n_tokens);
            const auto after = Clock::now();
            times.emplace_back(step.kind, std::chrono::duration_cast<std::chrono::nanoseconds>(after - before).count());
            before = after;
        }
        return times;
    }

    int64_t size() const { return int64_t(steps_.size()); }

  private:
    struct Step {
        const std::type_info* kind;
        std::function<void(int64_t n_tokens)> run;
    };

    int64_t n_tokens_ = 1;
    std::vector<Step> steps_;
};

// Runs a job over n_rows, and keeps it if a tape is recording. `run(job, args..., n_rows)` is the operator.
template <class Job, class... Args>
void submit(const Job& job, int64_t n_rows, Args... args) {
    if (Tape* tape = Tape::recording())
        tape->keep(typeid(Job), n_rows, [job, args...](int64_t rows) { run(job, args..., rows); });
    run(job, args..., n_rows);
}

}  // namespace headrace
