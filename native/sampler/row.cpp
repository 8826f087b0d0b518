#include "sampler/row.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>

#include "core/isa.h"
#include "core/pool.h"
#include "kernels/sampler_math.h"

namespace headrace {
namespace {

constexpr int64_t least_part = 8192;
constexpr int64_t most_parts = 64;

// The key that reaches `needed` when masses are added in order to `before`; all of them together do.
uint64_t last_by_mass(std::span<uint64_t> keys, int64_t before, int64_t needed) {
    auto first = keys.begin(), last = keys.end();
    while (last - first > 1) {
        const auto middle = first + (last - first) / 2;
        std::nth_element(first, middle, last);
        int64_t sum = 0;
        for (auto key = first; key != middle; ++key) sum += mass_of(scaled_of_order(uint32_t(*key >> 32)));
        if (before + sum >= needed) {
            last = middle;
        } else {
            before += sum;
            first = middle;
        }
    }
    return *first;
}

// The keys of a bucket lie between these two.
uint64_t bucket_start(int64_t bucket) { return bucket == 0 ? 0 : uint64_t((bucket_base + uint64_t(bucket)) << 16) << 32; }

uint64_t bucket_end(int64_t bucket) {
    return bucket == n_buckets - 1 ? std::numeric_limits<uint64_t>::max() : bucket_start(bucket + 1) - 1;
}

struct Bucket {
    int64_t index;
    int64_t before;  // the sum of the buckets before it
};

// The bucket in which the sum reaches `needed`, at most the sum of all.
Bucket bucket_reaching(const int64_t* buckets, int64_t needed) {
    Bucket at{0, 0};
    while (at.before + buckets[at.index] < needed) at.before += buckets[at.index++];
    return at;
}

}  // namespace

int64_t parts_of(int64_t size, int n_threads) {
    if (n_threads == 1) return 1;
    return std::clamp<int64_t>(size / least_part, 1, std::min<int64_t>(most_parts, 4 * n_threads));
}

Row::Row(const float* x, int64_t size, Scratch& scratch, int64_t n_parts)
    : x_(x), size_(size), scratch_(scratch), n_parts_(n_parts) {
    const int64_t blocks = (size + sampler_block - 1) / sampler_block;
    part_size_ = (blocks + n_parts - 1) / n_parts * sampler_block;
}

template <class F>
void Row::each_part(const F& f) {
    const auto part = [&](int64_t index, int) {
        const int64_t first = index * part_size_, last = std::min(size_, first + part_size_);
        if (first < last) f(index, first, last);
    };
    if (n_parts_ == 1)
        part(0, 0);  // perhaps inside a job of the pool
    else
        Pool::instance().each(n_parts_, part);
}

float Row::find_top() {
    std::array<Largest, most_parts> found;
    found.fill({-std::numeric_limits<float>::infinity(), false});
    each_part([&](int64_t part, int64_t first, int64_t last) {
        found[size_t(part)] = kernels().sampler_largest(x_, first, last, scratch_.block_max.data());
    });
    top_ = found[0].value;
    bool has_nan = false;
    for (int64_t part = 0; part < n_parts_; ++part) {
        has_nan |= found[size_t(part)].has_nan;
        if (found[size_t(part)].value > top_) top_ = found[size_t(part)].value;
    }
    return has_nan ? std::numeric_limits<float>::quiet_NaN() : top_;
}

int64_t Row::top_token() const {
    int64_t block = 0;
    while (scratch_.block_max[size_t(block)] != top_) ++block;
    return std::find(x_ + block * sampler_block, x_ + size_, top_) - x_;
}

uint64_t Row::key(const RowView& view, int64_t token) const {
    return uint64_t(order_in(view, x_[token])) << 32 | uint64_t(token);
}

uint64_t Row::limit_by_count(const RowView& view, int64_t k, uint64_t limit) {
    const int64_t blocks = (size_ + sampler_block - 1) / sampler_block;
    uint64_t from = 0, until = limit;
    int64_t wanted = k;
    if (k <= blocks) {
        // As many tokens reach the k-th largest of the blocks' maxima.
        std::copy_n(scratch_.block_max.begin(), blocks, scratch_.maxima.begin());
        const auto nth = scratch_.maxima.begin() + (k - 1);
        std::nth_element(scratch_.maxima.begin(), nth, scratch_.maxima.begin() + blocks, std::greater<>());
        until = std::min(limit, last_key(order_in(view, *nth)));
    } else if (view.scaled) {
        if (fill_buckets(view, limit, false) <= k) return limit;
        const Bucket bucket = bucket_reaching(scratch_.buckets.data(), k);
        from = bucket_start(bucket.index);
        until = std::min(limit, bucket_end(bucket.index));
        wanted = k - bucket.before;
    }
    const auto keys = collect(view, from, until);
    if (int64_t(keys.size()) <= wanted && until == limit) return limit;
    std::nth_element(keys.begin(), keys.begin() + (wanted - 1), keys.end());
    return keys[size_t(wanted - 1)];
}

uint64_t Row::limit_by_mass(const RowView& view, double p, uint64_t limit) {
    const int64_t total = fill_buckets(view, limit, true);
    const int64_t needed = std::max<int64_t>(1, int64_t(double(total) * p));
    if (needed > total) return limit;  // a p next to 1, where the sum was rounded up
    const Bucket bucket = bucket_reaching(scratch_.buckets.data(), needed);
    const auto keys = collect(view, bucket_start(bucket.index), std::min(limit, bucket_end(bucket.index)));
    return last_by_mass(keys, bucket.before, needed);
}

int64_t Row::fill_buckets(const RowView& view, uint64_t limit, bool by_mass) {
    const auto fill = by_mass ? kernels().sampler_fill_by_mass : kernels().sampler_fill_by_count;
    int64_t* buckets = scratch_.buckets.data();
    std::fill_n(buckets, n_parts_ * n_buckets, 0);
    each_part([&](int64_t part, int64_t first, int64_t last) {
        fill(view, first, last, limit, buckets + part * n_buckets);
    });
    int64_t total = 0;
    for (int64_t i = 0; i < n_buckets; ++i) {
        for (int64_t part = 1; part < n_parts_; ++part) buckets[i] += buckets[part * n_buckets + i];
        total += buckets[i];
    }
    return total;
}

int64_t Row::sum_masses(const RowView& view, uint64_t limit) {
    std::array<int64_t, most_parts> sums{};
    each_part([&](int64_t part, int64_t first, int64_t last) {
        sums[size_t(part)] = kernels().sampler_sum_masses(view, first, last, limit);
    });
    int64_t total = 0;
    for (int64_t sum : sums) total += sum;
    return total;
}

int64_t Row::count(const RowView& view, uint64_t limit) {
    std::array<int64_t, most_parts> counts{};
    each_part([&](int64_t part, int64_t first, int64_t last) {
        counts[size_t(part)] = kernels().sampler_count(view, first, last, limit);
    });
    int64_t total = 0;
    for (int64_t count : counts) total += count;
    return total;
}

std::span<uint64_t> Row::collect(const RowView& view, uint64_t from, uint64_t limit) {
    std::array<int64_t, most_parts> counts{};
    uint64_t* keys = scratch_.keys.data();
    each_part([&](int64_t part, int64_t first, int64_t last) {
        counts[size_t(part)] = kernels().sampler_collect(view, first, last, from, limit, keys + first);
    });
    int64_t n = counts[0];
    for (int64_t part = 1; part < n_parts_; ++part) {
        std::copy_n(keys + part * part_size_, counts[size_t(part)], keys + n);
        n += counts[size_t(part)];
    }
    return {keys, size_t(n)};
}

int64_t Row::race(const RowView& view, uint64_t limit, const Stream& stream) {
    static const uint64_t can_win = limit_of_least_mass(1);
    limit = std::min(limit, can_win);
    // The largest token opens the race: whatever waits longer need not be looked at closely.
    Winner start{std::numeric_limits<double>::infinity(), size_};
    const int64_t top = top_token();
    if (key(view, top) <= limit) {
        uint32_t words[4];
        noise_of(stream, uint32_t(top / 4), words);
        start = {wait_of(words[top % 4], mass_of(0.0f)), top};
    }
    std::array<Winner, most_parts> winners;
    winners.fill(start);
    each_part([&](int64_t part, int64_t first, int64_t last) {
        winners[size_t(part)] = kernels().sampler_race(view, first, last, limit, stream, start);
    });
    Winner best = start;
    for (const Winner& winner : winners)
        if (winner.wait < best.wait || (winner.wait == best.wait && winner.token < best.token)) best = winner;
    return best.token;
}

uint64_t limit_of_least_mass(int64_t mass) {
    // Masses never rise when y falls, so the last order that has enough is found by halving.
    uint32_t enough = 0, too_far = 0x7f800000u;
    while (too_far - enough > 1) {
        const uint32_t middle = enough + (too_far - enough) / 2;
        (mass_of(scaled_of_order(middle)) >= mass ? enough : too_far) = middle;
    }
    return last_key(enough);
}

}  // namespace headrace
