// Products of packed rows with the numbers of a cache, for each kind of number.
//
// Products<T>: `values` numbers of a row make a unit; `x_bytes` of a packed unit of a row, and `weight_stride` from one of
// weights to the next; `most_rows` of a tile; `scaled` if
// numbers have scales by token. A `Sum` is Vec::lanes sums; each row has `limbs` of them, which begin at `start`, `step` adds a
// unit to a tile, whose rows lie x_stride bytes apart, and `value` is what those of a row have come to. `pack` packs values
// [first, first + n) of a row x, units `stride` bytes apart; `pack_weights` packs weights as they are. Both return what else is
// to know of the row.
#pragma once

#include "core/kv_numbers.h"
#include "kernels/attention_args.h"
#include "kernels/lanes.h"
#include "kernels/linear_args.h"
#include "simd/dot.h"
#include "simd/int8.h"

namespace headrace {
namespace {

// Of a row whose values are taken as they are.
struct NoScale {};

template <class T>
struct Products {
    using D = Dot<T>;
    static constexpr int values = D::values;
    static constexpr int x_bytes = D::x_bytes;
    static constexpr int weight_stride = x_bytes;
    static constexpr int most_rows = tile_rows;
    static constexpr bool scaled = false;
    static constexpr int limbs = 1;
    using Row = NoScale;
    using Sum = Vec;

    template <class X>
    static Row pack(const X& x, int64_t first, int64_t n, char* to, int64_t stride) {
        for (int64_t i = 0; i < n; i += values, to += stride) {
            T unit[2] = {};
            for (int64_t j = 0; j < values && i + j < n; ++j) unit[j] = converted<T>(x[first + i + j]);
            D::put(unit, to);
        }
        return {};
    }

    static Sum start(Row, int) { return Vec::zero(); }
    static Vec value(const Sum* sum, int64_t, Row) { return *sum; }

    template <int rows, int vecs, int x_stride = x_bytes>
    static inline __attribute__((always_inline)) void step(const char* w, const char* x, Sum (&sums)[rows][vecs]) {
        D::template step<rows, vecs, x_stride>(w, x, sums);
    }
};

// Numbers as bf16: their bits, moved into place, are those of 2^-120 times them. So rows are packed as bf16 of 2^64 times
// them, and sums come to 2^-56 of what they are: products of sizes from 2^-50 to 2^60 are far from the ends of floats.
template <>
struct Products<e4m3> {
    using D = Dot<bf16>;
    static constexpr int values = 2;
    static constexpr int x_bytes = D::x_bytes;
    static constexpr int weight_stride = x_bytes;
    static constexpr int most_rows = tile_rows;
    static constexpr bool scaled = true;
    static constexpr float of_rows = 0x1p64f, of_sums = 0x1p56f;
    static constexpr int limbs = 1;
    using Row = NoScale;
    using Sum = Vec;

    struct Pairs {
        typedef int8_t Bytes __attribute__((vector_size(2 * Vec::lanes)));
        typedef int16_t Words __attribute__((vector_size(4 * Vec::lanes)));
        const char* memory;
        inline __attribute__((always_inline)) Vec operator()(int v) const {
            Bytes bytes;
            std::memcpy(&bytes, memory + v * sizeof bytes, sizeof bytes);
            const Words words = (__builtin_convertvector(bytes, Words) << 4) & int16_t(0x87f0);
            Vec bits;
            std::memcpy(&bits, &words, sizeof bits);
            return bits;
        }
    };

    template <class X>
    static Row pack(const X& x, int64_t first, int64_t n, char* to, int64_t stride) {
        for (int64_t i = 0; i < stored<e4m3>(n); i += values, to += stride) {
            bf16 unit[2] = {};
            for (int64_t j = 0; j < values && i + j < n; ++j) unit[j] = to_bf16(to_float(x[first + i + j]) * of_rows);
            D::put(unit, to);
        }
        return {};
    }

    static Row pack_weights(const float* weights, int64_t n, char* to) {
        const Vec factor = Vec::all(of_rows);
        for (int64_t i = 0; i < n; i += 2 * Vec::lanes, to += Vec::lanes * x_bytes)
            D::put_weights(Vec::load(weights + i) * factor, Vec::load(weights + i + Vec::lanes) * factor, to, Vec::zero());
        return {};
    }

    static Sum start(Row, int) { return Vec::zero(); }
    static Vec value(const Sum* sum, int64_t, Row) { return *sum * Vec::all(of_sums); }

    template <int rows, int vecs, int x_stride = x_bytes>
    static inline __attribute__((always_inline)) void step(const char* w, const char* x, Sum (&sums)[rows][vecs]) {
        D::template step_pairs<rows, vecs, x_stride>(Pairs{w}, x, sums);
    }
};

// Whole numbers on both sides: a row is 255 * high + low times a scale, both from -127 to 127, so that its values are good to
// one part in 65,024 of the largest. Sums are exact.
template <>
struct Products<q8> {
    static constexpr int values = 4;
    static constexpr int x_bytes = 8;
    static constexpr int weight_stride = values;
    static constexpr int most_rows = byte_tile_rows / 2;
    static constexpr bool scaled = true;
    static constexpr float base = 255.0f, most = base * 127.0f + 127.0f;
    static constexpr float tiny = 0x1p-100f;  // what is smaller counts as zero
    static constexpr int64_t strip = 64;      // values that are rounded together
    static constexpr int limbs = 2;           // high, low

    struct Row {
        int32_t starts[limbs];
        float scale;
    };
    using Sum = Sums;

    template <class X>
    static Row pack(const X& x, int64_t first, int64_t n, char* to, int64_t stride) {
        uint32_t largest = 0;
        for (int64_t i = 0; i < n; ++i) {
            const uint32_t size = bits_of(to_float(x[first + i])) & 0x7fffffffu;
            largest = size > largest ? size : largest;
        }
        const float size = float_of(largest);
        if (largest >= 0x7f800000u) return pack_nothing(n, to, stride, size - size);  // not a number
        if (size < tiny) return pack_nothing(n, to, stride, 0.0f);
        const float factor = most / size;
        int32_t sums[limbs] = {};
        for (int64_t start = 0; start < n; start += strip) {
            const int64_t count = n - start < strip ? n - start : strip;
            int8_t numbers[limbs][strip] = {};
            for (int64_t i = 0; i < count; ++i) {
                const float one = to_float(x[first + start + i]) * factor;
                const float number = __builtin_rintf(one > most ? most : one < -most ? -most : one);
                const float high = __builtin_rintf(number * (1.0f / base)), low = number - high * base;
                numbers[0][i] = int8_t(high);
                numbers[1][i] = int8_t(low);
                sums[0] += int32_t(high);
                sums[1] += int32_t(low);
            }
            for (int64_t i = 0; i < count; i += values, to += stride)
                for (int limb = 0; limb < limbs; ++limb) std::memcpy(to + limb * values, numbers[limb] + i, values);
        }
        return row_of(sums[0], sums[1], size / most);
    }

    // Weights are not negative.
    static Row pack_weights(const float* weights, int64_t n, char* to) {
        Vec top = Vec::zero(), nothing = Vec::zero();
        for (int64_t i = 0; i < n; i += Vec::lanes) {
            const Vec here = Vec::load(weights + i);
            top = Vec::max(here, top);
            nothing = Vec::fma(here, Vec::zero(), nothing);
        }
        const float largest = top.largest(), wrong = nothing.sum();  // not a number, if one of them is not finite
        if (wrong != 0.0f || largest < tiny) {
            std::memset(to, 0, size_t(n));
            std::memset(to + segment_tokens, 0, size_t(n));
            return {{0, 0}, wrong};
        }
        const Vec factor = Vec::all(most / largest), bound = Vec::all(most);
        Lanes::I sums[2] = {};
        for (int64_t i = 0; i < n; i += Vec::lanes) {
            const Vec number = Vec::nearest(Vec::min(Vec::load(weights + i) * factor, bound));
            const Vec high = Vec::nearest(number * Vec::all(1.0f / base)), low = Vec::fma(high, Vec::all(-base), number);
            sums[0] += put_bytes(high, to + i);
            sums[1] += put_bytes(low, to + segment_tokens + i);
        }
        return row_of(int32_t(Lanes::sum(sums[0])), int32_t(Lanes::sum(sums[1])), largest / most);
    }

    static Sum start(const Row& row, int limb) { return Sums::all(row.starts[limb]); }
    // The low sum lies `next` behind the high one.
    static Vec value(const Sum* sum, int64_t next, const Row& row) {
        return Vec::fma(sum[0].to_floats(), Vec::all(base), sum[next].to_floats()) * Vec::all(row.scale);
    }

    // Of a unit of weights, the low numbers lie a segment behind the high ones.
    template <int rows, int vecs, int x_stride = x_bytes>
    static inline __attribute__((always_inline)) void step(const char* w, const char* x, Sum (&sums)[rows * limbs][vecs]) {
        constexpr int apart = x_stride == x_bytes ? values : int(segment_tokens);
        Bytes bytes[vecs];
        for (int v = 0; v < vecs; ++v) bytes[v] = Bytes::load(w + v * Vec::lanes * values);
        for (int i = 0; i < rows * limbs; ++i) {
            int32_t four;
            std::memcpy(&four, x + i / limbs * x_stride + i % limbs * apart, values);
            for (int v = 0; v < vecs; ++v) sums[i][v].template add_products<8>(bytes[v], four);
        }
    }

  private:
    static Row pack_nothing(int64_t n, char* to, int64_t stride, float scale) {
        for (int64_t i = 0; i < n; i += values, to += stride) std::memset(to, 0, x_bytes);
        return {{0, 0}, scale};
    }

    // Numbers are stored as n + 128, and multiplied as n + 128 - byte_offset.
    static Row row_of(int32_t high, int32_t low, float scale) {
        return {{-(128 - byte_offset) * high, -(128 - byte_offset) * low}, scale};
    }

    static Lanes::I put_bytes(Vec x, char* to) {
        Lanes::F floats;
        std::memcpy(&floats, &x, sizeof floats);
        const Lanes::I numbers = Lanes::to_int(floats);
        const Lanes::Bytes bytes = __builtin_convertvector(numbers, Lanes::Bytes);
        std::memcpy(to, &bytes, sizeof bytes);
        return numbers;
    }
};

// Units of a part of a key of `dim` numbers, as queries are packed.
template <class T>
constexpr int64_t part_units(int64_t dim) {
    return (stored<T>(dim) + Products<T>::values - 1) / Products<T>::values;
}

}  // namespace
}  // namespace headrace
