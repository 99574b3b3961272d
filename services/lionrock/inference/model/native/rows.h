// What is done to each token's row alone: looking up, norm, and the rotation of heads with their way into the cache.
//
// Cache of one layer: keys and values, each [kv_heads][blocks][BLOCK × head_dim]. Inside a block keys lie
// [head_dim / DEPTH][BLOCK][DEPTH], so that one vector holds sixteen tokens, and values [BLOCK / DEPTH][head_dim][DEPTH], so that
// one vector holds sixteen dimensions: both are read as a product reads its weights.
#pragma once

#include "phases.h"
#include "vectors.h"

namespace lionrock {

constexpr int BLOCK = 16;  // tokens of a KV block
static_assert(BLOCK == LANES, "a vector holds the scores of one block");
constexpr int MOST_HEAD_DIM = 256;

// Root-mean-square norm, rounded as PyTorch's path rounds: once before the weight, once after. x, y: [size].
template <class E>
void rms_norm(E* y, const E* x, const E* weight, int64_t size, float epsilon) {
    Floats squares{};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        Floats v = widened(x + i);
        squares += v * v;
    }
    float total = sum(squares);
    for (; i < size; ++i) total += widen(x[i]) * widen(x[i]);
    float scale = 1.0f / std::sqrt(total / float(size) + epsilon);
    for (i = 0; i + LANES <= size; i += LANES) {
        E rounded[LANES];
        store_narrow(rounded, widened(x + i) * scale);
        store_narrow(y + i, widened(rounded) * widened(weight + i));
    }
    for (; i < size; ++i) y[i] = narrow<E>(widen(narrow<E>(widen(x[i]) * scale)) * widen(weight[i]));
}

// x += addend. [size]
template <class E>
void add(E* x, const E* addend, int64_t size) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) store_narrow(x + i, widened(x + i) + widened(addend + i));
    for (; i < size; ++i) x[i] = narrow<E>(widen(x[i]) + widen(addend[i]));
}

// y = silu(a) · b. [size]
template <class E>
void gate(E* y, const E* a, const E* b, int64_t size) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) store_narrow(y + i, silu(widened(a + i)) * widened(b + i));
    for (; i < size; ++i) y[i] = narrow<E>(silu(all(widen(a[i])))[0] * widen(b[i]));
}

// Index of the largest number, the first of equals. size: below 2^31.
inline int64_t first_largest(const float* x, int64_t size) {
    Floats best = all(-std::numeric_limits<float>::infinity());
    Ints where{};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        Floats v = load<Floats>(x + i);
        where = v > best ? lane_numbers() + int32_t(i) : where;
        best = v > best ? v : best;
    }
    float most = -std::numeric_limits<float>::infinity();
    int64_t index = 0;
    for (int lane = 0; lane < LANES; ++lane)
        if (best[lane] > most || (best[lane] == most && where[lane] < index)) most = best[lane], index = where[lane];
    for (; i < size; ++i)
        if (x[i] > most) most = x[i], index = i;
    return index;
}

// Rotate the first `rotary` dimensions of a head in place, first half against second. cos, sin: [rotary / 2].
template <class E>
void rotate(E* head, const E* cos, const E* sin, int64_t rotary) {
    int64_t half = rotary / 2;
    float a[MOST_HEAD_DIM / 2], b[MOST_HEAD_DIM / 2];
    for (int64_t i = 0; i < half; ++i) {
        a[i] = widen(head[i]), b[i] = widen(head[half + i]);
        float c = widen(cos[i]), s = widen(sin[i]);
        float first = a[i] * c - b[i] * s, second = b[i] * c + a[i] * s;
        a[i] = first, b[i] = second;
    }
    for (int64_t i = 0; i < half; ++i) head[i] = narrow<E>(a[i]), head[half + i] = narrow<E>(b[i]);
}

// block: of one head; offset: the token's place in it.
template <class E>
void write_key(E* block, const E* head, int64_t offset, int64_t head_dim) {
    constexpr int depth = DEPTH<E>;
    for (int64_t d = 0; d < head_dim; d += depth)
        for (int i = 0; i < depth; ++i) block[(d * BLOCK) + offset * depth + i] = head[d + i];
}

template <class E>
void write_value(E* block, const E* head, int64_t offset, int64_t head_dim) {
    constexpr int depth = DEPTH<E>;
    E* to = block + offset / depth * depth * head_dim + offset % depth;
    for (int64_t d = 0; d < head_dim; ++d) to[d * depth] = head[d];
}

}  // namespace lionrock
