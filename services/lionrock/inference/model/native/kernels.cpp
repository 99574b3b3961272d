// The steps of a decoder on CPUs as a list of operations, run by all threads together in one call. The interface is plain C, called
// through ctypes; `library.py` mirrors the structures below and the version number guards the two against each other.
//
// Every operation reads and writes buffers that the caller owns. Only a step's rows, tokens and block tables change between calls.

#include <memory>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "phases.h"
#include "quantised.h"
#include "rows.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

using namespace lionrock;

extern "C" {

struct LionrockStep {
    int64_t tokens;
    int64_t rows;
    int64_t samples;
    int64_t blocks;                // of the cache
    const int64_t* token_ids;      // [tokens]
    const int64_t* starts;         // [rows] position of a row's first token
    const int64_t* lengths;        // [rows] tokens of a row, which lie one after another in row order
    const int64_t* table_offsets;  // [rows] where a row's block table begins
    const int64_t* tables;         // block ids
    int64_t table_length;          // of `tables`
    const int64_t* sampled;        // [samples] tokens after which something is sampled
};

enum LionrockKind : int32_t {
    EMBED = 0,         // output = rows of the table
    NORM = 1,          // input += addend; output = norm(input) · weight
    LINEAR = 2,        // output = input @ weightᵀ + bias, see Store
    GATED_LINEAR = 3,  // output = silu(input @ weightᵀ + bias) · (input @ weight2ᵀ + bias2)
    ROTATE = 4,        // queries and keys of input are normed and rotated in place; keys and values go to the cache
    ATTEND = 5,        // output = attention of input's queries over the cache
    GATE = 6,          // output = silu(first half of input) · second half
    ADD = 7,           // output += input
    LARGEST = 8,       // output [samples] int64 = where each row of input, float32, is largest; the first of equals
};

struct LionrockOperation {
    int32_t kind;
    int32_t bfloat16;  // 1: elements are bfloat16, 0: float32
    int32_t store;     // LINEAR: Store
    int32_t sampled;   // NORM: rows are gathered from the sampled tokens; LINEAR: there are as many rows as samples
    int32_t format;    // LINEAR, GATED_LINEAR: Format of the weights
    const void* input;
    void* output;
    const void* weight;   // EMBED: table; NORM: weight; LINEAR: panels; GATED_LINEAR: of the gate; ROTATE: of the norm of queries
    const void* weight2;  // GATED_LINEAR: of up; ROTATE: of the norm of keys
    const void* bias;
    const void* bias2;
    void* addend;  // NORM: is added to the input first, in place; null: nothing
    void* keys;    // ROTATE, ATTEND: of this layer
    void* values;
    const void* cos;  // ROTATE: [positions][table_stride]
    const void* sin;
    int64_t input_stride;  // elements from row to row
    int64_t output_stride;
    int64_t addend_stride;
    int64_t inputs;   // LINEAR, NORM, EMBED: width
    int64_t outputs;  // LINEAR: width; EMBED: rows of the table
    int64_t head_dim;
    int64_t query_heads;
    int64_t kv_heads;
    int64_t rotary;  // ROTATE: dimensions that are rotated
    int64_t table_stride;
    int64_t positions;  // ROTATE: rows of cos and sin
    float epsilon;
    float scale;  // ATTEND: of the scores
};

}  // extern "C"

namespace {

enum Failure { NONE = 0, BAD_STEP = 1, BAD_TOKEN = 2, BAD_BLOCK = 3, BAD_POSITION = 4, UNKNOWN_OPERATION = 5 };

// A step with what is derived from it once a call.
struct Plan {
    const LionrockStep& step;
    std::vector<Row> rows;
    std::vector<int64_t> row_of;  // by token
    std::vector<int64_t> spans_before;
    bool one_token_each = true;
    int64_t most_spans = 0;

    explicit Plan(const LionrockStep& s) : step(s) {
        int64_t first = 0, spans = 0;
        for (int64_t i = 0; i < s.rows; ++i) {
            Row row{s.starts[i], s.lengths[i], first, s.tables + s.table_offsets[i]};
            rows.push_back(row);
            for (int64_t t = 0; t < row.tokens; ++t) row_of.push_back(i);
            first += row.tokens;
            spans_before.push_back(spans);
            spans += row.spans();
            one_token_each = one_token_each && row.tokens == 1;
            most_spans = row.spans() > most_spans ? row.spans() : most_spans;
        }
        spans_before.push_back(spans);
    }

    int64_t position(int64_t token) const {
        const Row& row = rows[size_t(row_of[size_t(token)])];
        return row.start + token - row.first;
    }
};

Failure check(const LionrockStep& s) {
    int64_t tokens = 0;
    for (int64_t i = 0; i < s.rows; ++i) {
        if (s.lengths[i] < 1 || s.starts[i] < 0) return BAD_STEP;
        tokens += s.lengths[i];
        int64_t blocks = (s.starts[i] + s.lengths[i] + BLOCK - 1) / BLOCK;
        if (s.table_offsets[i] < 0 || s.table_offsets[i] + blocks > s.table_length) return BAD_STEP;
        for (int64_t b = 0; b < blocks; ++b) {
            int64_t block = s.tables[s.table_offsets[i] + b];
            if (block < 0 || block >= s.blocks) return BAD_BLOCK;
        }
    }
    if (s.rows > 0 && tokens != s.tokens) return BAD_STEP;
    for (int64_t i = 0; i < s.samples; ++i)
        if (s.sampled[i] < 0 || s.sampled[i] >= s.tokens) return BAD_STEP;
    return NONE;
}

Failure check(const LionrockStep& s, const LionrockOperation& op) {
    if (op.kind < EMBED || op.kind > LARGEST) return UNKNOWN_OPERATION;
    if (op.format != int32_t(Format::PLAIN) && !with_scheme(Format(op.format), [](auto) {})) return UNKNOWN_OPERATION;
    if (op.kind == EMBED)
        for (int64_t t = 0; t < s.tokens; ++t)
            if (s.token_ids[t] < 0 || s.token_ids[t] >= op.outputs) return BAD_TOKEN;
    if (op.kind == ROTATE)
        for (int64_t i = 0; i < s.rows; ++i)
            if (s.starts[i] + s.lengths[i] > op.positions) return BAD_POSITION;
    return NONE;
}

template <class E>
class Runner {
   public:
    Runner(Worker& worker, const Plan& plan, float* partial, uint8_t* integers)
        : worker_(worker), plan_(plan), partial_(partial), integers_(integers) {}

    void run(const LionrockOperation& op) {
        switch (op.kind) {
            case EMBED: return embed(op);
            case NORM: return norm(op);
            case LINEAR: return multiply(op);
            case GATED_LINEAR: return multiply_gated(op);
            case ROTATE: return rotate_and_write(op);
            case ATTEND: return attend_heads(op);
            case GATE: return gate_halves(op);
            case ADD: return add_rows(op);
            case LARGEST: return find_largest(op);
        }
    }

   private:
    static const E* in(const void* p) { return static_cast<const E*>(p); }
    static E* out(void* p) { return static_cast<E*>(p); }

    void embed(const LionrockOperation& op) {
        worker_.phase(plan_.step.tokens, 16, [&](int64_t t, int64_t last) {
            for (; t < last; ++t)
                std::memcpy(
                    out(op.output) + t * op.output_stride, in(op.weight) + plan_.step.token_ids[t] * op.inputs,
                    size_t(op.inputs) * sizeof(E));
        });
    }

    void norm(const LionrockOperation& op) {
        int64_t count = op.sampled ? plan_.step.samples : plan_.step.tokens;
        worker_.phase(count, 4, [&](int64_t i, int64_t last) {
            for (; i < last; ++i) {
                int64_t row = op.sampled ? plan_.step.sampled[i] : i;
                const E* x = in(op.input) + row * op.input_stride;
                if (op.addend) add(const_cast<E*>(x), in(op.addend) + row * op.addend_stride, op.inputs);
                rms_norm(out(op.output) + i * op.output_stride, x, in(op.weight), op.inputs, op.epsilon);
            }
        });
    }

    void multiply(const LionrockOperation& op) {
        int64_t rows = op.sampled ? plan_.step.samples : plan_.step.tokens;
        bool quantised = with_scheme(Format(op.format), [&](auto scheme) {
            typedef decltype(scheme) S;
            QuantisedMatrix<E> matrix{static_cast<const uint8_t*>(op.weight), in(op.bias), op.outputs, op.inputs};
            quantise_rows<S>(worker_, integers_, in(op.input), op.input_stride, rows, op.inputs);
            quantised_linear<S>(worker_, integers_, op.output, op.output_stride, rows, matrix, Store(op.store));
        });
        if (quantised) return;
        Matrix<E> matrix{in(op.weight), in(op.bias), op.outputs, op.inputs};
        linear(worker_, in(op.input), op.input_stride, op.output, op.output_stride, rows, matrix, Store(op.store));
    }

    void multiply_gated(const LionrockOperation& op) {
        bool quantised = with_scheme(Format(op.format), [&](auto scheme) {
            typedef decltype(scheme) S;
            QuantisedMatrix<E> gates{static_cast<const uint8_t*>(op.weight), in(op.bias), op.outputs, op.inputs};
            QuantisedMatrix<E> ups{static_cast<const uint8_t*>(op.weight2), in(op.bias2), op.outputs, op.inputs};
            int64_t rows = plan_.step.tokens;
            quantise_rows<S>(worker_, integers_, in(op.input), op.input_stride, rows, op.inputs);
            quantised_gated_linear<S>(worker_, integers_, out(op.output), op.output_stride, rows, gates, ups);
        });
        if (quantised) return;
        Matrix<E> gates{in(op.weight), in(op.bias), op.outputs, op.inputs};
        Matrix<E> ups{in(op.weight2), in(op.bias2), op.outputs, op.inputs};
        gated_linear(worker_, in(op.input), op.input_stride, out(op.output), op.output_stride, plan_.step.tokens, gates, ups);
    }

    // Queries and keys are rotated where they lie, [tokens][query_heads + 2 × kv_heads][head_dim]; keys and values go to the cache.
    void rotate_and_write(const LionrockOperation& op) {
        int64_t dim = op.head_dim, head_stride = plan_.step.blocks * BLOCK * dim;
        worker_.phase(plan_.step.tokens, 4, [&](int64_t t, int64_t last) {
            for (; t < last; ++t) {
                const Row& row = plan_.rows[size_t(plan_.row_of[size_t(t)])];
                int64_t position = plan_.position(t), offset = position % BLOCK;
                const E* cos = in(op.cos) + position * op.table_stride;
                const E* sin = in(op.sin) + position * op.table_stride;
                E* heads = out(const_cast<void*>(op.input)) + t * op.input_stride;
                for (int64_t h = 0; h < op.query_heads + op.kv_heads; ++h) {
                    const void* weight = h < op.query_heads ? op.weight : op.weight2;
                    if (weight) rms_norm(heads + h * dim, heads + h * dim, in(weight), dim, op.epsilon);
                    rotate(heads + h * dim, cos, sin, op.rotary);
                }
                const E* keys = heads + op.query_heads * dim;
                const E* values = keys + op.kv_heads * dim;
                int64_t block = row.table[position / BLOCK] * BLOCK * dim;
                for (int64_t h = 0; h < op.kv_heads; ++h) {
                    write_key(out(op.keys) + h * head_stride + block, keys + h * dim, offset, dim);
                    write_value(out(op.values) + h * head_stride + block, values + h * dim, offset, dim);
                }
            }
        });
    }

    void attend_heads(const LionrockOperation& op) {
        Heads<E> heads{
            in(op.keys), in(op.values), plan_.step.blocks * BLOCK * op.head_dim, op.head_dim, op.query_heads / op.kv_heads,
            op.kv_heads, in(op.input), op.input_stride, out(op.output), op.output_stride, op.scale * LOG2_E};
        const Row* rows = plan_.rows.data();
        int64_t count = int64_t(plan_.rows.size());
        if (partial_ != nullptr)
            attend_split(worker_, heads, rows, count, plan_.spans_before.data(), partial_);
        else
            attend(worker_, heads, rows, count);
    }

    void gate_halves(const LionrockOperation& op) {
        worker_.phase(plan_.step.tokens, 2, [&](int64_t t, int64_t last) {
            for (; t < last; ++t) {
                const E* halves = in(op.input) + t * op.input_stride;
                gate(out(op.output) + t * op.output_stride, halves, halves + op.inputs, op.inputs);
            }
        });
    }

    void find_largest(const LionrockOperation& op) {
        worker_.phase(plan_.step.samples, 1, [&](int64_t i, int64_t last) {
            for (; i < last; ++i)
                static_cast<int64_t*>(op.output)[i] =
                    first_largest(static_cast<const float*>(op.input) + i * op.input_stride, op.inputs);
        });
    }

    void add_rows(const LionrockOperation& op) {
        worker_.phase(plan_.step.tokens, 4, [&](int64_t t, int64_t last) {
            for (; t < last; ++t) add(out(op.output) + t * op.output_stride, in(op.input) + t * op.input_stride, op.inputs);
        });
    }

    Worker& worker_;
    const Plan& plan_;
    float* partial_;
    uint8_t* integers_;
};

// Elements of partial results that splitting would take, 0 where it would not help.
int64_t split_elements(const Plan& plan, const LionrockOperation* operations, int64_t count, int threads) {
    int64_t elements = 0;
    for (int64_t i = 0; i < count; ++i) {
        const LionrockOperation& op = operations[i];
        if (op.kind != ATTEND) continue;
        bool few = int64_t(plan.rows.size()) * op.kv_heads < 8 * int64_t(threads);
        if (threads == 1 || !plan.one_token_each || plan.most_spans < 2 || !few) return 0;
        int64_t needed = plan.spans_before.back() * op.query_heads * (MOST_HEAD_DIM + 2 * LANES);
        elements = needed > elements ? needed : elements;
    }
    return elements;
}

// Bytes that the quantised rows of the largest product take.
int64_t integer_bytes(const LionrockStep& step, const LionrockOperation* operations, int64_t count) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; ++i) {
        const LionrockOperation& op = operations[i];
        if (op.kind != LINEAR && op.kind != GATED_LINEAR) continue;
        int64_t rows = op.sampled ? step.samples : step.tokens;
        with_scheme(Format(op.format), [&](auto scheme) {
            int64_t bytes = rows * decltype(scheme)::row_bytes(op.inputs);
            most = bytes > most ? bytes : most;
        });
    }
    return most;
}

void use_large_pages(void* memory, size_t bytes) {
#if defined(__linux__)
    // A weight is read once a step from front to back, and translating small pages costs a tenth of that.
    uintptr_t begin = (uintptr_t(memory) + 4095) & ~uintptr_t(4095);
    uintptr_t end = (uintptr_t(memory) + bytes) & ~uintptr_t(4095);
    if (end > begin) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

}  // namespace

extern "C" {

#pragma GCC visibility push(default)

int64_t lionrock_abi_version() { return 2; }
int64_t lionrock_operation_bytes() { return int64_t(sizeof(LionrockOperation)); }
int64_t lionrock_step_bytes() { return int64_t(sizeof(LionrockStep)); }

// What the text was compiled for: bit 0 bfloat16 products in one instruction, bit 1 AVX-512, bit 2 threads.
int64_t lionrock_features() {
    int64_t features = 0;
#if defined(__AVX512BF16__)
    features |= 1;
#endif
#if defined(__AVX512F__)
    features |= 2;
#endif
#if defined(_OPENMP)
    features |= 4;
#endif
    return features;
}

int64_t lionrock_packed_elements(int64_t outputs, int64_t inputs) { return packed_elements<float>(outputs, inputs); }

// Bring a row-major weight [outputs][inputs] into panels. bfloat16: inputs must be even.
void lionrock_pack(const void* weight, void* packed, int64_t outputs, int64_t inputs, int32_t bfloat16, int32_t threads) {
    int64_t panels = (outputs + PANEL - 1) / PANEL;
    use_large_pages(packed, size_t(panels * PANEL * inputs) * (bfloat16 ? 2 : 4));
    together(threads, 1, [&](Worker& worker) {
        worker.phase(panels, grain_of(panels, threads), [&](int64_t panel, int64_t last) {
            for (; panel < last; ++panel) {
                if (bfloat16)
                    pack_panel(static_cast<const BFloat16*>(weight), static_cast<BFloat16*>(packed), outputs, inputs, panel);
                else
                    pack_panel(static_cast<const float*>(weight), static_cast<float*>(packed), outputs, inputs, panel);
            }
        });
    });
}

// Bytes of a matrix in a format's panels; 0 for an unknown format.
int64_t lionrock_quantised_bytes(int32_t format, int64_t outputs, int64_t inputs) {
    int64_t bytes = 0;
    with_scheme(Format(format), [&](auto scheme) { bytes = (outputs + PANEL - 1) / PANEL * decltype(scheme)::panel_bytes(inputs); });
    return bytes;
}

// Advise the system to put memory that is about to be written on large pages.
void lionrock_use_large_pages(void* memory, int64_t bytes) { use_large_pages(memory, size_t(bytes)); }

// Run the operations over a step. Returns 0, or why nothing was run.
int32_t lionrock_run(const LionrockStep* step, const LionrockOperation* operations, int64_t count, int32_t threads) {
    if (Failure failure = check(*step)) return failure;
    for (int64_t i = 0; i < count; ++i)
        if (Failure failure = check(*step, operations[i])) return failure;
    Plan plan(*step);
    int64_t elements = split_elements(plan, operations, count, threads);
    std::unique_ptr<float[]> partial(elements > 0 ? new float[size_t(elements)] : nullptr);
    float* split = partial.get();
    int64_t bytes = integer_bytes(*step, operations, count);
    std::unique_ptr<uint8_t[]> integers(bytes > 0 ? new uint8_t[size_t(bytes)] : nullptr);
    together(threads, 2 * count, [&](Worker& worker) {
        Runner<BFloat16> narrow(worker, plan, split, integers.get());
        Runner<float> wide(worker, plan, split, integers.get());
        for (int64_t i = 0; i < count; ++i) operations[i].bfloat16 ? narrow.run(operations[i]) : wide.run(operations[i]);
    });
    return NONE;
}

#pragma GCC visibility pop

}  // extern "C"
