// Attention of queries over keys and values that stay where the block table says, a group of query heads sharing each read.
//
// Keys are taken in spans of fixed length; each span is a softmax of its own, and spans are merged in order (Milakov and
// Gimelshein 2018; Dao et al. 2022). What a query attends to is so summed in one order, whether it decodes alone, decodes in a
// batch, is part of a chunk, or has its spans spread over threads: its result is the same to the last bit.
#pragma once

#include <type_traits>

#include "linear.h"
#include "rows.h"

namespace lionrock {

constexpr int64_t SPAN = 256;  // keys; a multiple of BLOCK
constexpr int QUERIES = ROWS;  // (token, head) pairs of one KV head that are attended together
constexpr int64_t QUERIES_AN_ITEM = 32;

// One layer's cache and the heads over it.
template <class E>
struct Heads {
    const E* keys;
    const E* values;
    int64_t head_stride;  // elements from one KV head's cache to the next
    int64_t head_dim;
    int64_t group;  // query heads a KV head
    int64_t kv_heads;
    const E* queries;  // [tokens][query_stride], heads side by side
    int64_t query_stride;
    E* out;  // [tokens][out_stride]
    int64_t out_stride;
    float scale;
};

// Running softmax of some queries: weights relative to 2^maximum.
struct Softmax {
    float maximum[QUERIES];
    float total[QUERIES];
    alignas(64) float mixed[QUERIES][MOST_HEAD_DIM + LANES];
};

// Merge a later span into `into`, for one query.
inline void merge(float& maximum, float& total, float* mixed, float other_maximum, float other_total, const float* other, int64_t size) {
    if (other_total == 0.0f) return;
    float highest = maximum > other_maximum ? maximum : other_maximum;
    Floats exponents{};
    exponents[0] = maximum - highest;
    exponents[1] = other_maximum - highest;
    Floats factors = exp2_nonpositive(exponents);
    float mine = factors[0], theirs = factors[1];
    maximum = highest;
    total = total * mine + other_total * theirs;
    for (int64_t i = 0; i < size; ++i) mixed[i] = mixed[i] * mine + other[i] * theirs;
}

template <class E>
inline void finish_query(E* out, const float* mixed, float total, int64_t head_dim) {
    float share = 1.0f / total;
    for (int64_t d = 0; d < head_dim; ++d) out[d] = narrow<E>(mixed[d] * share);
}

inline Floats without_neighbour(Floats v) { return v; }
inline Words without_neighbour(Words v) { return v & 0xffffu; }

// Scores of R queries against N blocks of keys. blocks: where each begins; scores: [R][SPAN], at the first block's first key.
template <class E, int R, int N>
inline __attribute__((always_inline)) void score_blocks(
    float* scores, const E* const* queries, const E* const* blocks, int64_t head_dim, float scale) {
    typedef typename Multiplied<E>::Scalar Scalar;
    typedef typename Multiplied<E>::Vector Vector;
    constexpr int depth = DEPTH<E>;
    Floats acc[R][N] = {};
    for (int64_t d = 0; d < head_dim; d += depth) {
        Vector b[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) b[j] = load<Vector>(blocks[j] + d * BLOCK);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            Scalar a = load<Scalar>(queries[r] + d);
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) acc[r][j] = multiply_add(acc[r][j], a, b[j]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < N; ++j) store(scores + r * SPAN + j * BLOCK, acc[r][j] * scale);
}

// Weighted values of R queries over `keys` keys, dimensions d … d + N × LANES − 1. weights: [R][SPAN] of E, zero past each query's last.
template <class E, int R, int N>
inline __attribute__((always_inline)) void mix_values(
    float (*mixed)[MOST_HEAD_DIM + LANES], const E* weights, const E* const* blocks, int64_t keys, int64_t d, int64_t head_dim) {
    typedef typename Multiplied<E>::Scalar Scalar;
    typedef typename Multiplied<E>::Vector Vector;
    constexpr int depth = DEPTH<E>;
    Floats acc[R][N] = {};
    auto step = [&](int64_t key, auto fetch) {
        const E* from = blocks[key / BLOCK] + (key % BLOCK * head_dim + d * depth);
        Vector b[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) b[j] = fetch(from + j * LANES * depth, j);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            Scalar a = load<Scalar>(weights + r * SPAN + key);
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) acc[r][j] = multiply_add(acc[r][j], a, b[j]);
        }
    };
    if (d + N * LANES <= head_dim) {
        int64_t whole = keys / depth * depth;
        for (int64_t key = 0; key < whole; key += depth) step(key, [](const E* from, int) { return load<Vector>(from); });
        // The neighbour of the last key of an odd number was not written by this sequence: it must not count, were it a NaN.
        if (whole < keys) step(whole, [](const E* from, int) { return without_neighbour(load<Vector>(from)); });
    } else {  // the last dimensions of a head that is no multiple of LANES
        for (int64_t key = 0; key < keys; key += depth) {
            step(key, [&](const E* from, int j) {
                int64_t left = head_dim - d - j * LANES;
                Vector v{};
                if (left > 0) std::memcpy(&v, from, size_t(left < LANES ? left : LANES) * depth * sizeof(E));
                return key + depth > keys ? without_neighbour(v) : v;
            });
        }
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < N; ++j) store(mixed[r] + d + j * LANES, acc[r][j]);
}

// One span for R queries. blocks: the span's blocks, keys and values; seen: how many of its keys each query may look at.
template <class E, int R>
void attend_span(
    Softmax& softmax, const E* const* queries, const E* const* key_blocks, const E* const* value_blocks, const int64_t* seen,
    const Heads<E>& heads) {
    constexpr int WIDE = R <= 2 ? 4 : 2;
    alignas(64) float scores[R * SPAN];
    alignas(64) E weights[R * SPAN];
    int64_t keys = 0;
    for (int r = 0; r < R; ++r) keys = seen[r] > keys ? seen[r] : keys;
    int64_t blocks = (keys + BLOCK - 1) / BLOCK, block = 0;
    for (; block + WIDE <= blocks; block += WIDE)
        score_blocks<E, R, WIDE>(scores + block * BLOCK, queries, key_blocks + block, heads.head_dim, heads.scale);
    for (; block < blocks; ++block)
        score_blocks<E, R, 1>(scores + block * BLOCK, queries, key_blocks + block, heads.head_dim, heads.scale);
    for (int r = 0; r < R; ++r) {
        float* row = scores + r * SPAN;
        Floats highest = all(-std::numeric_limits<float>::infinity());
        for (int64_t k = 0; k < blocks * BLOCK; k += LANES) {
            Floats v = lane_numbers() + int32_t(k) < int32_t(seen[r]) ? load<Floats>(row + k) : all(-std::numeric_limits<float>::infinity());
            store(row + k, v);
            highest = max(highest, v);
        }
        float maximum = seen[r] > 0 ? largest(highest) : 0.0f;
        Floats total{};
        for (int64_t k = 0; k < blocks * BLOCK; k += LANES) {
            Floats weight = exp2_nonpositive(load<Floats>(row + k) - maximum);
            total += weight;
            store_narrow(weights + r * SPAN + k, weight);
        }
        softmax.maximum[r] = maximum;
        softmax.total[r] = sum(total);
    }
    int64_t d = 0;
    for (; d + WIDE * LANES <= heads.head_dim; d += WIDE * LANES)
        mix_values<E, R, WIDE>(softmax.mixed, weights, value_blocks, keys, d, heads.head_dim);
    for (; d < heads.head_dim; d += LANES) mix_values<E, R, 1>(softmax.mixed, weights, value_blocks, keys, d, heads.head_dim);
}

// Where one row's tokens are and what they may look at.
struct Row {
    int64_t start;  // position of its first token
    int64_t tokens;
    int64_t first;  // its first token among the step's
    const int64_t* table;  // its blocks

    int64_t pairs(int64_t group) const { return tokens * group; }
    int64_t spans() const { return (start + tokens - 1) / SPAN + 1; }
};

// R (token, head) pairs of one row and KV head, from pair `first` on.
template <class E, int R>
struct Queries {
    const E* at[R];
    int64_t position[R];
    E* out[R];

    Queries(const Heads<E>& heads, const Row& row, int64_t kv_head, int64_t first) {
        for (int r = 0; r < R; ++r) {
            int64_t token = (first + r) / heads.group, head = kv_head * heads.group + (first + r) % heads.group;
            at[r] = heads.queries + (row.first + token) * heads.query_stride + head * heads.head_dim;
            out[r] = heads.out + (row.first + token) * heads.out_stride + head * heads.head_dim;
            position[r] = row.start + token;
        }
    }

    void attend(Softmax& softmax, const Heads<E>& heads, const Row& row, int64_t kv_head, int64_t span) const {
        const E *keys[SPAN / BLOCK], *values[SPAN / BLOCK];
        int64_t seen[R], most = 0;
        for (int r = 0; r < R; ++r) {
            int64_t left = position[r] + 1 - span * SPAN;
            seen[r] = left < 0 ? 0 : left < SPAN ? left : SPAN;
            most = seen[r] > most ? seen[r] : most;
        }
        for (int64_t b = 0; b * BLOCK < most; ++b) {
            int64_t at = kv_head * heads.head_stride + row.table[span * (SPAN / BLOCK) + b] * BLOCK * heads.head_dim;
            keys[b] = heads.keys + at;
            values[b] = heads.values + at;
        }
        attend_span<E, R>(softmax, at, keys, values, seen, heads);
    }

    void finish(const Softmax& softmax, int64_t head_dim) const {
        for (int r = 0; r < R; ++r) finish_query(out[r], softmax.mixed[r], softmax.total[r], head_dim);
    }
};

template <class E>
void attend_pairs(const Heads<E>& heads, const Row& row, int64_t kv_head, int64_t first, int64_t last) {
    while (first < last) {
        with_tile<QUERIES>(last - first, [&](auto size) {
            constexpr int R = decltype(size)::value;
            Queries<E, R> queries(heads, row, kv_head, first);
            Softmax running, later;
            int64_t spans = queries.position[R - 1] / SPAN + 1;
            queries.attend(running, heads, row, kv_head, 0);
            for (int64_t span = 1; span < spans; ++span) {
                queries.attend(later, heads, row, kv_head, span);
                for (int r = 0; r < R; ++r)
                    merge(running.maximum[r], running.total[r], running.mixed[r], later.maximum[r], later.total[r], later.mixed[r],
                          heads.head_dim);
            }
            queries.finish(running, heads.head_dim);
            first += R;
        });
    }
}

// Items of a row: its KV heads times parts of its pairs.
template <class E>
inline int64_t parts_of(const Row& row, const Heads<E>& heads) {
    return (row.pairs(heads.group) + QUERIES_AN_ITEM - 1) / QUERIES_AN_ITEM;
}

template <class E>
void attend(Worker& worker, const Heads<E>& heads, const Row* rows, int64_t count) {
    int64_t items = 0;
    for (int64_t i = 0; i < count; ++i) items += parts_of(rows[i], heads) * heads.kv_heads;
    worker.phase(items, grain_of(items, worker.threads()), [&](int64_t item, int64_t last) {
        int64_t index = 0, before = 0;
        for (; item < last; ++item) {
            for (int64_t of_row; item >= before + (of_row = parts_of(rows[index], heads) * heads.kv_heads); ++index) before += of_row;
            const Row& row = rows[index];
            int64_t parts = parts_of(row, heads), first = (item - before) % parts * QUERIES_AN_ITEM;
            int64_t pairs = row.pairs(heads.group), end = first + QUERIES_AN_ITEM;
            attend_pairs(heads, row, (item - before) / parts, first, end < pairs ? end : pairs);
        }
    });
}

// The same for a few rows of one token with many keys: every span an item, then the spans of each query merged in order.
// Row i's spans begin at spans_before[i]; partial: [spans of all rows][kv_heads][group][MOST_HEAD_DIM + 2 × LANES].
template <class E>
void attend_split(Worker& worker, const Heads<E>& heads, const Row* rows, int64_t count, const int64_t* spans_before, float* partial) {
    constexpr int64_t STRIDE = MOST_HEAD_DIM + 2 * LANES;
    auto place = [&](int64_t span, int64_t kv_head, int64_t g) {
        return partial + ((span * heads.kv_heads + kv_head) * heads.group + g) * STRIDE;
    };
    worker.phase(spans_before[count] * heads.kv_heads, 1, [&](int64_t item, int64_t last) {
        for (; item < last; ++item) {
            int64_t span = item / heads.kv_heads, kv_head = item % heads.kv_heads, index = 0;
            while (span >= spans_before[index + 1]) ++index;
            for (int64_t g = 0; g < heads.group;) {
                with_tile<QUERIES>(heads.group - g, [&](auto size) {
                    constexpr int R = decltype(size)::value;
                    Queries<E, R> queries(heads, rows[index], kv_head, g);
                    Softmax softmax;
                    queries.attend(softmax, heads, rows[index], kv_head, span - spans_before[index]);
                    for (int r = 0; r < R; ++r, ++g) {
                        float* to = place(span, kv_head, g);
                        to[0] = softmax.maximum[r], to[1] = softmax.total[r];
                        std::memcpy(to + LANES, softmax.mixed[r], size_t(heads.head_dim) * sizeof(float));
                    }
                });
            }
        }
    });
    worker.phase(count * heads.kv_heads * heads.group, 1, [&](int64_t item, int64_t last) {
        for (; item < last; ++item) {
            int64_t index = item / (heads.kv_heads * heads.group), head = item % (heads.kv_heads * heads.group);
            int64_t kv_head = head / heads.group, g = head % heads.group;
            float* running = place(spans_before[index], kv_head, g);
            for (int64_t span = spans_before[index] + 1; span < spans_before[index + 1]; ++span) {
                const float* later = place(span, kv_head, g);
                merge(running[0], running[1], running + LANES, later[0], later[1], later + LANES, heads.head_dim);
            }
            Queries<E, 1> query(heads, rows[index], kv_head, g);
            finish_query(query.out[0], running + LANES, running[1], heads.head_dim);
        }
    });
}

}  // namespace lionrock
