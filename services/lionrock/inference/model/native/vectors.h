// Sixteen lanes at a time, in the compiler's own vector types, so that one text serves AVX-512, AVX2, NEON and anything else.
//
// bfloat16 is multiplied in pairs: a 32-bit lane holds two neighbours along the summed dimension. Where the processor has
// AVX512-BF16 that is one instruction, elsewhere two multiply-adds on the widened halves. Sums are float32 everywhere.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace lionrock {

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

struct BFloat16 {
    uint16_t bits;
};

template <class To, class From>
inline To bits_of(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "bits are kept");
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

template <class V>
inline V load(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof(V));
    return v;
}

template <class V>
inline void store(void* to, const V& v) {
    std::memcpy(to, &v, sizeof(V));
}

inline Floats all(float value) { return value - Floats{}; }

inline Ints lane_numbers() { return Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

inline Floats max(Floats a, Floats b) { return a > b ? a : b; }

// A fixed order of additions, the same with every compiler.
inline float sum(Floats v) {
    float a[LANES];
    store(a, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) a[i] += a[i + width];
    return a[0];
}

inline float largest(Floats v) {
    float a[LANES];
    store(a, v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) a[i] = a[i] > a[i + width] ? a[i] : a[i + width];
    return a[0];
}

// ---- between the stored type and float32 ------------------------------------------------------------------------------------

inline float widen(float x) { return x; }
inline float widen(BFloat16 x) { return bits_of<float>(uint32_t(x.bits) << 16); }

template <class E>
E narrow(float x);
template <>
inline float narrow<float>(float x) { return x; }
template <>
inline BFloat16 narrow<BFloat16>(float x) {  // to nearest, ties to even; NaN stays NaN
    uint32_t u = bits_of<uint32_t>(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};
    return {uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}

inline Floats widened(const float* from) { return load<Floats>(from); }
inline Floats widened(const BFloat16* from) {
    return bits_of<Floats>(__builtin_convertvector(load<Halves>(from), Words) << 16);
}

inline void store_narrow(float* to, Floats v) { store(to, v); }
inline void store_narrow(BFloat16* to, Floats v) {
#if defined(__AVX512BF16__)
    store(to, _mm512_cvtneps_pbh(bits_of<__m512>(v)));
#else
    Words u = bits_of<Words>(v);
    Words rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
    Words nan = Words{} + 0x7fc0u;
    store(to, __builtin_convertvector((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded, Halves));
#endif
}

// ---- multiply and add -------------------------------------------------------------------------------------------------------

// How many neighbours along the summed dimension one lane holds.
template <class E>
constexpr int DEPTH = 1;
template <>
inline constexpr int DEPTH<BFloat16> = 2;

// What is broadcast, and what it is multiplied with: DEPTH elements, and LANES × DEPTH elements.
template <class E>
struct Multiplied;
template <>
struct Multiplied<float> {
    typedef float Scalar;
    typedef Floats Vector;
};
template <>
struct Multiplied<BFloat16> {
    typedef uint32_t Scalar;
    typedef Words Vector;
};

inline Floats multiply_add(Floats sum, float a, Floats b) { return sum + a * b; }

inline Floats multiply_add(Floats sum, uint32_t a, Words b) {
#if defined(__AVX512BF16__)
    return bits_of<Floats>(_mm512_dpbf16_ps(
        bits_of<__m512>(sum), bits_of<__m512bh>(_mm512_set1_epi32(int(a))), bits_of<__m512bh>(b)));
#else
    sum = sum + bits_of<float>(a << 16) * bits_of<Floats>(b << 16);
    return sum + bits_of<float>(a & 0xffff0000u) * bits_of<Floats>(b & 0xffff0000u);
#endif
}

// ---- exponential ------------------------------------------------------------------------------------------------------------

// 2^x for x ≤ 0, to about one unit in the last place; 0 below −126. Degree 6 about the nearest integer.
inline Floats exp2_nonpositive(Floats x) {
    Ints tiny = x < -126.0f;
    x = tiny ? all(-126.0f) : x;
    Floats shifted = x + 12582912.0f;  // 1.5 × 2^23: rounds to an integer, which lies in the low bits
    Floats fraction = x - (shifted - 12582912.0f);
    Floats p = all(1.5403530e-4f);
    p = p * fraction + 1.3333558e-3f;
    p = p * fraction + 9.6181291e-3f;
    p = p * fraction + 5.5504109e-2f;
    p = p * fraction + 2.4022651e-1f;
    p = p * fraction + 6.9314718e-1f;
    p = p * fraction + 1.0f;
    Ints exponent = bits_of<Ints>(shifted) << 23;  // the integer, in the exponent's place
    Floats power = bits_of<Floats>(bits_of<Ints>(p) + exponent);
    return tiny ? Floats{} : power;
}

constexpr float LOG2_E = 1.44269504088896340736f;

inline Floats silu(Floats x) {
    // x / (1 + e^−x), with the exponential of −|x| so that it cannot overflow.
    Floats magnitude = x < 0.0f ? -x : x;
    Floats e = exp2_nonpositive(magnitude * -LOG2_E);
    Floats sigmoid = (x < 0.0f ? e : all(1.0f)) / (1.0f + e);
    return x * sigmoid;
}

}  // namespace lionrock
