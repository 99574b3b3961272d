// x @ weightᵀ with integer weights and integer activations, summed exactly within groups of inputs that share a scale.
//
// A group of inputs has one scale an output and one scale a row; integers are multiplied and added without rounding inside it, and
// the groups' results are added in float32, in one order whatever the number of rows: a row's result does not depend on its company.
// Activations are quantised a row and group at a time, to 8 bits, or to 16 bits as two planes of 8 (then the weights' rounding is
// the only one that counts: sixteen bits a group lose less than bfloat16 does).
// Weights are unsigned, activations signed, because that is what VPDPBUSD multiplies: an 8-bit weight w is stored as w + 128, and
// 128 · Σx is taken off again; a 4-bit weight is q · scale + minimum (ggml's Q4_1), and minimum · Σx is added.
//
// Where a scheme rotates, each group of activations went through a Hadamard transform, and so did the weights when they were packed:
// the products stay, and an outlier spreads over its group instead of costing the others their precision (QuaRot, Ashkboos et al. 2024).
//
// Panel of 48 outputs: for each group [48] float32 scales, or [48] float16 scales and [48] float16 minima, then
// [GROUP / 4][3][LANES][4] bytes; or [GROUP / 8][3][LANES][4] bytes whose low halves are a group's first half of inputs.
#pragma once

#include "linear.h"

namespace lionrock {

template <int BITS_, int PLANES_, int GROUP_, bool ROTATED_>
struct Scheme {
    static constexpr int BITS = BITS_;
    static constexpr int PLANES = PLANES_;
    static constexpr int GROUP = GROUP_;
    static constexpr bool ROTATED = ROTATED_;
    static constexpr int SCALE_BYTES = PANEL * 4;
    static constexpr int GROUP_BYTES = SCALE_BYTES + PANEL * GROUP * BITS / 8;
    static constexpr int ROW_GROUP_BYTES = PLANES * GROUP + 8;  // of activations: planes, scale, sum
    static constexpr int MOST = PLANES == 2 ? 32639 : 127;      // 127 · 256 + 127
    static constexpr int TILE = ROWS / PLANES;

    static int64_t groups(int64_t inputs) { return (inputs + GROUP - 1) / GROUP; }
    static int64_t panel_bytes(int64_t inputs) { return groups(inputs) * GROUP_BYTES; }
    static int64_t row_bytes(int64_t inputs) { return (groups(inputs) * ROW_GROUP_BYTES + 127) / 64 * 64; }
};

enum class Format : int32_t { PLAIN = 0, INT8_INT8 = 1, INT8_INT16 = 2, INT4_INT16 = 3 };

// Call `run` with the scheme of a format as a value of its type. Returns false for PLAIN.
template <class Run>
inline bool with_scheme(Format format, Run&& run) {
    switch (format) {
        case Format::INT8_INT8: return run(Scheme<8, 1, 64, true>{}), true;
        case Format::INT8_INT16: return run(Scheme<8, 2, 32, false>{}), true;
        case Format::INT4_INT16: return run(Scheme<4, 2, 32, false>{}), true;
        case Format::PLAIN: break;
    }
    return false;
}

// ---- activations ------------------------------------------------------------------------------------------------------------

// What is WIDTH lanes away, counted by exclusive or.
template <int WIDTH, class V>
inline V swapped(V v) {
#if defined(__clang__)
    return __builtin_shufflevector(
        v, v, 0 ^ WIDTH, 1 ^ WIDTH, 2 ^ WIDTH, 3 ^ WIDTH, 4 ^ WIDTH, 5 ^ WIDTH, 6 ^ WIDTH, 7 ^ WIDTH, 8 ^ WIDTH, 9 ^ WIDTH,
        10 ^ WIDTH, 11 ^ WIDTH, 12 ^ WIDTH, 13 ^ WIDTH, 14 ^ WIDTH, 15 ^ WIDTH);
#else
    return __builtin_shuffle(v, lane_numbers() ^ WIDTH);
#endif
}

template <int WIDTH>
inline Floats butterfly(Floats v) {
    return v * ((lane_numbers() & WIDTH) != 0 ? all(-1.0f) : all(1.0f)) + swapped<WIDTH>(v);
}

// Hadamard transform of 64 numbers, divided by 8: its own inverse.
inline void hadamard64(Floats* v) {
    Floats a = v[0] + v[1], b = v[0] - v[1], c = v[2] + v[3], d = v[2] - v[3];
    v[0] = a + c, v[1] = b + d, v[2] = a - c, v[3] = b - d;
    for (int i = 0; i < 4; ++i) v[i] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(v[i] * 0.125f))));
}

inline float largest_lane(Floats v) {
    v = max(v, swapped<8>(v));
    v = max(v, swapped<4>(v));
    v = max(v, swapped<2>(v));
    return max(v, swapped<1>(v))[0];
}

inline int32_t sum_of_lanes(Ints v) {
    v += swapped<8>(v);
    v += swapped<4>(v);
    v += swapped<2>(v);
    return (v + swapped<1>(v))[0];
}

// One group of a row: planes of GROUP bytes (the upper one first), scale, sum of the integers. x: `count` ≤ GROUP elements.
template <class S, class E>
inline void quantise_group(uint8_t* to, const E* x, int64_t count) {
    typedef int8_t Bytes __attribute__((vector_size(16)));
    constexpr int VECTORS = S::GROUP / LANES;
    Floats v[VECTORS];
    if (count == S::GROUP) {
        for (int i = 0; i < VECTORS; ++i) v[i] = widened(x + i * LANES);
    } else {
        float padded[S::GROUP] = {};
        for (int64_t i = 0; i < count; ++i) padded[i] = widen(x[i]);
        for (int i = 0; i < VECTORS; ++i) v[i] = load<Floats>(padded + i * LANES);
    }
    if constexpr (S::ROTATED) hadamard64(v);
    Floats magnitude{};
    for (int i = 0; i < VECTORS; ++i) magnitude = max(magnitude, v[i] < 0.0f ? -v[i] : v[i]);
    float highest = largest_lane(magnitude);
    float inverse = highest > 0.0f ? float(S::MOST) / highest : 0.0f;
    float scale = highest * (1.0f / float(S::MOST));
    Ints sums{};
    for (int i = 0; i < VECTORS; ++i) {
        // 1.5 × 2^23 rounds to the nearest integer, which then lies in the low bits.
        Ints q = bits_of<Ints>(v[i] * inverse + 12582912.0f) - 0x4b400000;
        sums += q;
        if constexpr (S::PLANES == 2) {
            store(to + i * LANES, __builtin_convertvector((q + 128) >> 8, Bytes));
            store(to + S::GROUP + i * LANES, __builtin_convertvector(q, Bytes));  // the low byte, signed
        } else {
            store(to + i * LANES, __builtin_convertvector(q, Bytes));
        }
    }
    int32_t total = sum_of_lanes(sums);
    store(to + S::PLANES * S::GROUP, scale);
    store(to + S::PLANES * S::GROUP + 4, total);
}

template <class S, class E>
void quantise_row(uint8_t* to, const E* x, int64_t inputs) {
    for (int64_t k = 0; k < inputs; k += S::GROUP, to += S::ROW_GROUP_BYTES)
        quantise_group<S>(to, x + k, inputs - k < S::GROUP ? inputs - k : int64_t(S::GROUP));
}

// ---- products ---------------------------------------------------------------------------------------------------------------

// sum + Σ of four unsigned bytes of b with four signed bytes of a, a lane at a time.
inline Ints multiply_add_bytes(Ints sum, uint32_t a, Words b) {
#if defined(__AVX512VNNI__)
    return bits_of<Ints>(_mm512_dpbusd_epi32(bits_of<__m512i>(sum), bits_of<__m512i>(b), _mm512_set1_epi32(int(a))));
#else
    for (int i = 0; i < 4; ++i) sum += bits_of<Ints>(b >> (8 * i) & 255u) * int32_t(int8_t(a >> (8 * i)));
    return sum;
#endif
}

// Sixteen float16, none of them infinite.
inline Floats widened_half(const void* from) {
#if defined(__AVX512F__)
    return bits_of<Floats>(_mm512_maskz_cvtph_ps(0xffff, bits_of<__m256i>(load<Halves>(from))));
#else
    Words u = __builtin_convertvector(load<Halves>(from), Words);
    Floats magnitude = bits_of<Floats>((u & 0x7fffu) << 13) * 0x1p112f;
    return bits_of<Floats>(bits_of<Words>(magnitude) | (u & 0x8000u) << 16);
#endif
}

// Add `groups` groups of R rows to sums. x: of the first row, at the first group.
template <class S, int R>
inline __attribute__((always_inline)) void multiply_groups(
    Sums<R>& sums, const uint8_t* x, int64_t x_stride, const uint8_t* panel, int64_t groups) {
    constexpr int P = S::PLANES, G = S::GROUP;
    Floats totals[R][3];
    std::memcpy(totals, &sums, sizeof(totals));
    for (int64_t g = 0; g < groups; ++g) {
        const uint8_t* codes = panel + S::SCALE_BYTES;
        Ints acc[R * P][3] = {};
        for (int k = 0; k < G * S::BITS / 8; k += 4, codes += PANEL * 4) {
            Words b[3];
#pragma GCC unroll 3
            for (int j = 0; j < 3; ++j) {
                b[j] = load<Words>(codes + j * 64);
                __builtin_prefetch(codes + j * 64 + 3072);
            }
            auto multiply = [&](const Words* factors, int at) __attribute__((always_inline)) {
#pragma GCC unroll 8
                for (int v = 0; v < R * P; ++v) {
                    uint32_t a = load<uint32_t>(x + v / P * x_stride + v % P * G + at);
#pragma GCC unroll 3
                    for (int j = 0; j < 3; ++j) acc[v][j] = multiply_add_bytes(acc[v][j], a, factors[j]);
                }
            };
            if constexpr (S::BITS == 8) {
                multiply(b, k);
            } else {
                Words half[3];
#pragma GCC unroll 3
                for (int j = 0; j < 3; ++j) half[j] = b[j] & 0x0f0f0f0fu;
                multiply(half, k);
#pragma GCC unroll 3
                for (int j = 0; j < 3; ++j) half[j] = b[j] >> 4 & 0x0f0f0f0fu;
                multiply(half, k + G / 2);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const uint8_t* of_row = x + r * x_stride + P * G;
            float scale = load<float>(of_row);
            int32_t sum = load<int32_t>(of_row + 4);
#pragma GCC unroll 3
            for (int j = 0; j < 3; ++j) {
                Ints whole = P == 2 ? (acc[r * P][j] << 8) + acc[r * P + P - 1][j] : acc[r][j];
                if constexpr (S::BITS == 8) {
                    Floats scales = load<Floats>(panel + j * 64) * scale;
                    totals[r][j] += __builtin_convertvector(whole - 128 * sum, Floats) * scales;
                } else {
                    totals[r][j] += __builtin_convertvector(whole, Floats) * (widened_half(panel + j * 32) * scale);
                    totals[r][j] += widened_half(panel + PANEL * 2 + j * 32) * (scale * float(sum));
                }
            }
        }
        panel += S::GROUP_BYTES;
        x += S::ROW_GROUP_BYTES;
    }
    std::memcpy(&sums, totals, sizeof(totals));
}

// Sums of up to ROWS_AT_ONCE quantised rows for one panel. sums: [rows][PANEL].
template <class S>
void multiply_quantised_panel(float* sums, const uint8_t* x, int64_t x_stride, int64_t rows, const uint8_t* panel, int64_t inputs) {
    constexpr int64_t GROUPS_AT_ONCE = 4096 / S::GROUP;  // stay in the second-level cache while rows pass over them
    std::memset(sums, 0, size_t(rows) * PANEL * sizeof(float));
    int64_t groups = S::groups(inputs);
    for (int64_t g = 0; g < groups; g += GROUPS_AT_ONCE) {
        int64_t count = groups - g < GROUPS_AT_ONCE ? groups - g : GROUPS_AT_ONCE;
        for (int64_t row = 0; row < rows;) {
            with_tile<(S::TILE > 1 ? S::TILE : 1)>(rows - row, [&](auto size) {
                constexpr int R = decltype(size)::value;
                Sums<R> tile;
                std::memcpy(&tile, sums + row * PANEL, sizeof(tile));
                multiply_groups<S, R>(
                    tile, x + row * x_stride + g * S::ROW_GROUP_BYTES, x_stride, panel + g * S::GROUP_BYTES, count);
                std::memcpy(sums + row * PANEL, &tile, sizeof(tile));
                row += R;
            });
        }
    }
}

template <class E>
struct QuantisedMatrix {
    const uint8_t* panels;
    const E* bias;  // or null
    int64_t outputs;
    int64_t inputs;

    int64_t count() const { return (outputs + PANEL - 1) / PANEL; }
};

// Quantise all rows into `to`, as one phase. x: [rows][inputs], stride in elements.
template <class S, class E>
void quantise_rows(Worker& worker, uint8_t* to, const E* x, int64_t x_stride, int64_t rows, int64_t inputs) {
    worker.phase(rows, 4, [&](int64_t row, int64_t last) {
        for (; row < last; ++row) quantise_row<S>(to + row * S::row_bytes(inputs), x + row * x_stride, inputs);
    });
}

// See `linear`. x: rows as quantise_rows left them.
template <class S, class E>
void quantised_linear(
    Worker& worker, const uint8_t* x, void* y, int64_t y_stride, int64_t rows, const QuantisedMatrix<E>& matrix, Store how) {
    int64_t blocks = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, x_stride = S::row_bytes(matrix.inputs);
    int64_t items = matrix.count() * blocks;
    worker.phase(items, grain_of(items, worker.threads()), [&](int64_t first, int64_t last) {
        alignas(64) float sums[ROWS_AT_ONCE * PANEL];
        for (int64_t item = first; item < last; ++item) {
            int64_t panel = item / blocks, row = item % blocks * ROWS_AT_ONCE;
            int64_t count = rows - row < ROWS_AT_ONCE ? rows - row : ROWS_AT_ONCE;
            int64_t output = panel * PANEL;
            int64_t outputs = matrix.outputs - output < PANEL ? matrix.outputs - output : PANEL;
            multiply_quantised_panel<S>(
                sums, x + row * x_stride, x_stride, count, matrix.panels + panel * S::panel_bytes(matrix.inputs), matrix.inputs);
            const E* bias = matrix.bias ? matrix.bias + output : nullptr;
            for (int64_t r = 0; r < count; ++r) {
                int64_t at = (row + r) * y_stride + output;
                if (how == Store::FLOAT)
                    finish_float(static_cast<float*>(y) + at, sums + r * PANEL, bias, outputs);
                else
                    finish_row(static_cast<E*>(y) + at, sums + r * PANEL, bias, outputs, how == Store::ADD);
            }
        }
    });
}

// See `gated_linear`. x: rows as quantise_rows left them.
template <class S, class E>
void quantised_gated_linear(
    Worker& worker, const uint8_t* x, E* y, int64_t y_stride, int64_t rows, const QuantisedMatrix<E>& gate,
    const QuantisedMatrix<E>& up) {
    int64_t blocks = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, x_stride = S::row_bytes(gate.inputs);
    int64_t items = gate.count() * blocks;
    worker.phase(items, grain_of(items, worker.threads()), [&](int64_t first, int64_t last) {
        alignas(64) float gates[ROWS_AT_ONCE * PANEL], ups[ROWS_AT_ONCE * PANEL];
        for (int64_t item = first; item < last; ++item) {
            int64_t panel = item / blocks, row = item % blocks * ROWS_AT_ONCE;
            int64_t count = rows - row < ROWS_AT_ONCE ? rows - row : ROWS_AT_ONCE;
            int64_t output = panel * PANEL, at = panel * S::panel_bytes(gate.inputs);
            int64_t outputs = gate.outputs - output < PANEL ? gate.outputs - output : PANEL;
            multiply_quantised_panel<S>(gates, x + row * x_stride, x_stride, count, gate.panels + at, gate.inputs);
            multiply_quantised_panel<S>(ups, x + row * x_stride, x_stride, count, up.panels + at, up.inputs);
            for (int64_t r = 0; r < count; ++r) {
                float *g = gates + r * PANEL, *u = ups + r * PANEL;
                for (int64_t i = 0; gate.bias && i < outputs; ++i) g[i] += widen(gate.bias[output + i]);
                for (int64_t i = 0; up.bias && i < outputs; ++i) u[i] += widen(up.bias[output + i]);
                gate_row(g, u);
                finish_row(y + (row + r) * y_stride + output, g, static_cast<const E*>(nullptr), outputs, false);
            }
        }
    });
}

}  // namespace lionrock
