// x @ weightᵀ for one to some thousand rows, weights packed into panels of 48 outputs.
//
// Panel: [ceil(in / DEPTH)][3][LANES][DEPTH], so that a product reads its weights front to back. A tile of up to ROWS rows keeps its
// sums in registers. Every output is summed in one order along the inputs, whatever the number of rows: a row's result does not
// depend on its company.
#pragma once

#include <type_traits>

#include "phases.h"
#include "vectors.h"

namespace lionrock {

constexpr int PANEL = 3 * LANES;

#if defined(__AVX512F__)
constexpr int ROWS = 8;  // 24 of 32 registers hold sums
#else
constexpr int ROWS = 2;
#endif

// Inputs that are summed before they are added to what came before: a panel's part that stays in the second-level cache while rows
// pass over it; few for float32, whose rounding then grows with the number of parts and not of inputs.
template <class E>
constexpr int64_t INPUTS_AT_ONCE = sizeof(E) == 4 ? 128 : 2048;
constexpr int64_t ROWS_AT_ONCE = 128;

enum class Store : int32_t { PLAIN = 0, ADD = 1, FLOAT = 2 };

template <class E>
struct Matrix {
    const E* panels;
    const E* bias;  // or null
    int64_t outputs;
    int64_t inputs;  // a multiple of DEPTH

    int64_t count() const { return (outputs + PANEL - 1) / PANEL; }
    const E* panel(int64_t index) const { return panels + index * PANEL * inputs; }
};

template <class E>
int64_t packed_elements(int64_t outputs, int64_t inputs) {
    return (outputs + PANEL - 1) / PANEL * PANEL * inputs;
}

// weight: [outputs][inputs], row-major. Outputs past the last are zero.
template <class E>
void pack_panel(const E* weight, E* packed, int64_t outputs, int64_t inputs, int64_t index) {
    constexpr int depth = DEPTH<E>;
    E* to = packed + index * PANEL * inputs;
    for (int64_t k = 0; k < inputs; k += depth)
        for (int64_t column = 0; column < PANEL; ++column) {
            int64_t output = index * PANEL + column;
            for (int d = 0; d < depth; ++d) *to++ = output < outputs ? weight[output * inputs + k + d] : E{};
        }
}

template <int R>
struct Sums {
    Floats of[R][3];
};

template <class E, int R>
inline __attribute__((always_inline)) void multiply_tile(
    Sums<R>& sums, const E* x, int64_t x_stride, const E* panel, int64_t inputs) {
    typedef typename Multiplied<E>::Scalar Scalar;
    typedef typename Multiplied<E>::Vector Vector;
    constexpr int depth = DEPTH<E>;
    Floats acc[R][3] = {};
    const char* at = reinterpret_cast<const char*>(panel);
    for (int64_t k = 0; k < inputs; k += depth) {
        Vector b[3];
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
            b[j] = load<Vector>(at + j * sizeof(Vector));
            __builtin_prefetch(at + j * sizeof(Vector) + 3072);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            Scalar a = load<Scalar>(x + r * x_stride + k);
#pragma GCC unroll 3
            for (int j = 0; j < 3; ++j) acc[r][j] = multiply_add(acc[r][j], a, b[j]);
        }
        at += 3 * sizeof(Vector);
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < 3; ++j) sums.of[r][j] += acc[r][j];
}

// Call `run` with the largest tile that fits: its rows as a constant.
template <int R, class Run>
inline void with_tile(int64_t rows, Run&& run) {
    if constexpr (R > 1) {
        if (rows < R) return with_tile<R - 1>(rows, run);
    }
    run(std::integral_constant<int, R>{});
}

// Sums of up to ROWS_AT_ONCE rows for one panel. sums: [rows][PANEL].
template <class E>
void multiply_panel(float* sums, const E* x, int64_t x_stride, int64_t rows, const Matrix<E>& matrix, int64_t index) {
    std::memset(sums, 0, size_t(rows) * PANEL * sizeof(float));
    for (int64_t k = 0; k < matrix.inputs; k += INPUTS_AT_ONCE<E>) {
        int64_t inputs = matrix.inputs - k < INPUTS_AT_ONCE<E> ? matrix.inputs - k : INPUTS_AT_ONCE<E>;
        const E* panel = matrix.panel(index) + k * PANEL;
        for (int64_t row = 0; row < rows;) {
            with_tile<ROWS>(rows - row, [&](auto size) {
                constexpr int R = decltype(size)::value;
                Sums<R> tile;
                std::memcpy(&tile, sums + row * PANEL, sizeof(tile));
                multiply_tile<E, R>(tile, x + row * x_stride + k, x_stride, panel, inputs);
                std::memcpy(sums + row * PANEL, &tile, sizeof(tile));
                row += R;
            });
        }
    }
}

// Finish one row of a panel: y is where its first output goes, `count` how many of the panel's outputs exist.
template <class E>
inline void finish_row(E* y, const float* sums, const E* bias, int64_t count, bool add) {
    float finished[PANEL];
    for (int64_t i = 0; i < count; ++i) finished[i] = sums[i] + (bias ? widen(bias[i]) : 0.0f) + (add ? widen(y[i]) : 0.0f);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store_narrow(y + i, load<Floats>(finished + i));
    for (; i < count; ++i) y[i] = narrow<E>(finished[i]);
}

template <class E>
inline void finish_float(float* y, const float* sums, const E* bias, int64_t count) {
    for (int64_t i = 0; i < count; ++i) y[i] = sums[i] + (bias ? widen(bias[i]) : 0.0f);
}

// silu(gate) · up, into gate.
inline void gate_row(float* gate, const float* up) {
    for (int j = 0; j < PANEL; j += LANES) store(gate + j, silu(load<Floats>(gate + j)) * load<Floats>(up + j));
}

// y = x @ weightᵀ + bias for all rows: stored, added to what y holds, or stored as float32.
// x: [rows][inputs], y: [rows][outputs], strides in elements.
template <class E>
void linear(Worker& worker, const E* x, int64_t x_stride, void* y, int64_t y_stride, int64_t rows, const Matrix<E>& matrix, Store how) {
    int64_t blocks = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    int64_t items = matrix.count() * blocks;
    worker.phase(items, grain_of(items, worker.threads()), [&](int64_t first, int64_t last) {
        alignas(64) float sums[ROWS_AT_ONCE * PANEL];
        for (int64_t item = first; item < last; ++item) {
            int64_t panel = item / blocks, row = item % blocks * ROWS_AT_ONCE;
            int64_t count = rows - row < ROWS_AT_ONCE ? rows - row : ROWS_AT_ONCE;
            int64_t output = panel * PANEL;
            int64_t outputs = matrix.outputs - output < PANEL ? matrix.outputs - output : PANEL;
            multiply_panel(sums, x + row * x_stride, x_stride, count, matrix, panel);
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

// y = silu(x @ gateᵀ + …) · (x @ upᵀ + …), both packed as matrices of their own.
template <class E>
void gated_linear(
    Worker& worker, const E* x, int64_t x_stride, E* y, int64_t y_stride, int64_t rows, const Matrix<E>& gate, const Matrix<E>& up) {
    int64_t blocks = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    int64_t items = gate.count() * blocks;
    worker.phase(items, grain_of(items, worker.threads()), [&](int64_t first, int64_t last) {
        alignas(64) float gates[ROWS_AT_ONCE * PANEL], ups[ROWS_AT_ONCE * PANEL];
        for (int64_t item = first; item < last; ++item) {
            int64_t panel = item / blocks, row = item % blocks * ROWS_AT_ONCE;
            int64_t count = rows - row < ROWS_AT_ONCE ? rows - row : ROWS_AT_ONCE;
            int64_t output = panel * PANEL;
            int64_t outputs = gate.outputs - output < PANEL ? gate.outputs - output : PANEL;
            multiply_panel(gates, x + row * x_stride, x_stride, count, gate, panel);
            multiply_panel(ups, x + row * x_stride, x_stride, count, up, panel);
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
