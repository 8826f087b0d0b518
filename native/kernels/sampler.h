// Passes of the sampler over a range of a row, a block at a time. The operations are those of docs/sampling.md, so every
// level gives the same bits.
#pragma once

#include "kernels/lanes.h"
#include "kernels/sampler_math.h"

namespace headrace {
namespace {

// The logits of one block; a last block that is short is filled up with tokens that no limit lets in.
struct Block {
    const float* x;
    int size;
    alignas(64) float filled[sampler_block];

    Block(const float* row, int64_t at, int64_t last) : x(row + at), size(int(sampler_block)) {
        if (last - at >= sampler_block) return;
        size = int(last - at);
        for (int i = 0; i < int(sampler_block); ++i) filled[i] = i < size ? row[at + i] : -__builtin_inff();
        x = filled;
    }
};

// A block's tokens that are wanted, as one byte each, so that eight without a hit cost one look.
struct Hits {
    alignas(64) int8_t at[sampler_block];

    void put(int i, Lanes::I mask) {
        const auto bytes = __builtin_convertvector(mask, Lanes::Bytes);
        std::memcpy(at + i, &bytes, sizeof bytes);
    }

    template <class F>
    void each(const F& f) const {
        for (int i = 0; i < int(sampler_block); i += 8) {
            uint64_t eight;
            std::memcpy(&eight, at + i, 8);
            if (!eight) continue;
            for (int j = i; j < i + 8; ++j)
                if (at[j]) f(j);
        }
    }
};

// Which tokens have keys up to a limit.
struct Within {
    Lanes::U order, token;

    explicit Within(uint64_t limit) : order(Lanes::U{} + uint32_t(limit >> 32)), token(Lanes::U{} + uint32_t(limit)) {}

    // For the orders of the tokens from `first` on.
    Lanes::I operator()(Lanes::U orders, int64_t first) const {
        const Lanes::U tokens = Lanes::count_up() + uint32_t(first);
        return (orders < order) | ((orders == order) & (tokens <= token));
    }
};

// No token of the block at `at` has a key up to `limit`.
inline bool is_beyond(const RowView& row, int64_t at, uint64_t limit) {
    return order_in(row, row.block_max[at / sampler_block]) > uint32_t(limit >> 32);
}

inline Lanes::F masked(Lanes::F x, Lanes::I mask) { return bits_as<Lanes::F>(bits_as<Lanes::I>(x) & mask); }

// Integers in the order of floats: no float comparison sees a NaN.
Largest sampler_largest(const float* x, int64_t first, int64_t last, float* block_max) {
    const auto turned = [](int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); };
    int32_t top = INT32_MIN, top_size = 0;
    for (int64_t at = first; at < last; at += sampler_block) {
        const Block block(x, at, last);
        Lanes::I best = Lanes::I{} + INT32_MIN, size{};
        for (int i = 0; i < int(sampler_block); i += Lanes::count) {
            const auto bits = bits_as<Lanes::I>(Lanes::load(block.x + i));
            const Lanes::I magnitude = bits & 0x7fffffff;
            const Lanes::I ordered = bits ^ ((bits >> 31) & 0x7fffffff);
            best = ordered > best ? ordered : best;
            size = magnitude > size ? magnitude : size;
        }
        int32_t block_best = INT32_MIN;
        for (int i = 0; i < Lanes::count; ++i) {
            block_best = best[i] > block_best ? best[i] : block_best;
            top_size = size[i] > top_size ? size[i] : top_size;
        }
        block_max[at / sampler_block] = bits_as<float>(turned(block_best));
        top = block_best > top ? block_best : top;
    }
    return {bits_as<float>(turned(top)), top_size > 0x7f800000};
}

// The sum of the masses of the tokens up to `limit`.
int64_t sampler_sum_masses(const RowView& row, int64_t first, int64_t last, uint64_t limit) {
    const Within within(limit);
    int64_t total = 0;
    for (int64_t at = first; at < last; at += sampler_block) {
        if (is_beyond(row, at, limit)) continue;
        const Block block(row.x, at, last);
        Lanes::I high{}, low{};  // halves of 20 bits, so that a block's sums fit
        for (int i = 0; i < int(sampler_block); i += Lanes::count) {
            const Lanes::F y = (Lanes::load(block.x + i) - row.top) / row.temperature;
            const Lanes::F mass = masked(whole_mass<Lanes>(y), within(order_of_scaled<Lanes>(y), at + i));
            const Lanes::I part = Lanes::to_int(mass * 0x1p-20f);
            high += part;
            low += Lanes::to_int(mass - Lanes::to_float(part) * 0x1p20f);
        }
        total += (Lanes::sum(high) << 20) + Lanes::sum(low);
    }
    return total;
}

// Adds each token up to `limit` to its bucket: its mass, or 1.
template <bool by_mass>
void sampler_fill_buckets(const RowView& row, int64_t first, int64_t last, uint64_t limit, int64_t* buckets) {
    const Within within(limit);
    alignas(64) float weights[sampler_block];
    alignas(64) int32_t places[sampler_block];
    for (int64_t at = first; at < last; at += sampler_block) {
        if (is_beyond(row, at, limit)) continue;
        const Block block(row.x, at, last);
        for (int i = 0; i < int(sampler_block); i += Lanes::count) {
            const Lanes::F y = (Lanes::load(block.x + i) - row.top) / row.temperature;
            const Lanes::U order = order_of_scaled<Lanes>(y);
            const Lanes::F weight = masked(by_mass ? whole_mass<Lanes>(y) : Lanes::all(1.0f), within(order, at + i));
            const Lanes::I place = bucket_of<Lanes>(order);
            std::memcpy(weights + i, &weight, sizeof weight);
            std::memcpy(places + i, &place, sizeof place);
        }
        for (int i = 0; i < block.size; ++i) buckets[places[i]] += int64_t(weights[i]);
    }
}

template <bool scaled>
int64_t collect(const RowView& row, int64_t first, int64_t last, uint64_t from, uint64_t limit, uint64_t* keys) {
    alignas(64) uint32_t orders[sampler_block];
    Hits hits;
    int64_t n_keys = 0;
    const Lanes::U from_order = Lanes::U{} + uint32_t(from >> 32), limit_order = Lanes::U{} + uint32_t(limit >> 32);
    for (int64_t at = first; at < last; at += sampler_block) {
        if (is_beyond(row, at, limit)) continue;
        const Block block(row.x, at, last);
        for (int i = 0; i < int(sampler_block); i += Lanes::count) {
            const Lanes::U order = order_in<Lanes, scaled>(row, Lanes::load(block.x + i));
            std::memcpy(orders + i, &order, sizeof order);
            hits.put(i, (order >= from_order) & (order <= limit_order));
        }
        hits.each([&](int i) {
            const uint64_t key = uint64_t(orders[i]) << 32 | uint64_t(at + i);
            if (key < from || key > limit) return;
            keys[n_keys++] = key;
        });
    }
    return n_keys;
}

// Writes the keys in [from, limit], in order of token, and returns how many; `keys` has room for one per token.
int64_t sampler_collect(const RowView& row, int64_t first, int64_t last, uint64_t from, uint64_t limit, uint64_t* keys) {
    return (row.scaled ? collect<true> : collect<false>)(row, first, last, from, limit, keys);
}

template <bool scaled>
int64_t count_up_to(const RowView& row, int64_t first, int64_t last, uint64_t limit) {
    const Within within(limit);
    int64_t count = 0;
    for (int64_t at = first; at < last; at += sampler_block) {
        if (is_beyond(row, at, limit)) continue;
        const Block block(row.x, at, last);
        Lanes::I found{};
        for (int i = 0; i < int(sampler_block); i += Lanes::count)
            found += within(order_in<Lanes, scaled>(row, Lanes::load(block.x + i)), at + i);
        count -= Lanes::sum(found);
    }
    return count;
}

// How many tokens have keys up to `limit`.
int64_t sampler_count(const RowView& row, int64_t first, int64_t last, uint64_t limit) {
    return (row.scaled ? count_up_to<true> : count_up_to<false>)(row, first, last, limit);
}

// The first of the tokens up to `limit` in the race, if it beats `best`: the least wait, then the least id. Exact waits
// are taken of those only that may win: as -log(u) >= 1 - u, the others have lost. The slack is far above the rounding of
// that test.
Winner sampler_race(const RowView& row, int64_t first, int64_t last, uint64_t limit, const Stream& stream, Winner best) {
    alignas(64) uint32_t orders[sampler_block], noise[sampler_block];
    Hits hits;
    const Lanes::U limit_order = Lanes::U{} + uint32_t(limit >> 32);
    for (int64_t at = first; at < last; at += sampler_block) {
        if (is_beyond(row, at, limit)) continue;
        const Block block(row.x, at, last);
        for (int g = 0; g < int(sampler_block / 4); ++g) {
            uint32_t words[4];
            noise_of(stream, uint32_t(at / 4) + uint32_t(g), words);
            for (int i = 0; i < 4; ++i) noise[4 * g + i] = words[i];
        }
        const Lanes::F bound = Lanes::all(float(best.wait * (1.0 + 0x1p-18)));
        for (int i = 0; i < int(sampler_block); i += Lanes::count) {
            const Lanes::F y = (Lanes::load(block.x + i) - row.top) / row.temperature;
            const Lanes::U order = order_of_scaled<Lanes>(y);
            // 1 - u, or a little less: halved, it fits a signed conversion.
            const Lanes::U rest = ~Lanes::load(noise + i);
            const Lanes::F least = (Lanes::to_float(bits_as<Lanes::I>(rest >> 1)) + 0.25f) * 0x1p-31f;
            std::memcpy(orders + i, &order, sizeof order);
            hits.put(i, (order <= limit_order) & (least <= bound * whole_mass<Lanes>(y)));
        }
        hits.each([&](int i) {
            const int64_t token = at + i;
            const int64_t mass = mass_of(scaled_of_order(orders[i]));
            if ((uint64_t(orders[i]) << 32 | uint64_t(token)) > limit || mass == 0) return;
            const double wait = wait_of(noise[i], mass);
            if (wait < best.wait || (wait == best.wait && token < best.token)) best = {wait, token};
        });
    }
    return best;
}

}  // namespace
}  // namespace headrace
