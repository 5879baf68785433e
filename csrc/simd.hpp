// Fixed-width vectors of float and double over the compiler's vector extensions.
//
// The file is compiled once for each instruction set (see CMakeLists.txt). Everything lives in a namespace named after
// that set, and nothing from the standard library is instantiated here: an inline function that two sets shared could be
// linked from the wider one and fault on the narrower machine.
#pragma once

#include <cstdint>
#include <math.h>

#ifndef LMN_ISA
#error "LMN_ISA names the instruction set that this translation unit is compiled for"
#endif

namespace lmn::LMN_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
inline constexpr int kMaxBlockOutputs = 6;  // 6 x 4 accumulators of 32 registers
inline constexpr int kMaxBlockSteps = 4;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
inline constexpr int kMaxBlockOutputs = 4;  // 4 x 3 accumulators of 16 registers
inline constexpr int kMaxBlockSteps = 3;
#elif defined(__aarch64__)
inline constexpr int kVectorBytes = 16;
inline constexpr int kMaxBlockOutputs = 6;  // 32 registers again
inline constexpr int kMaxBlockSteps = 4;
#else
inline constexpr int kVectorBytes = 16;
inline constexpr int kMaxBlockOutputs = 4;
inline constexpr int kMaxBlockSteps = 3;
#endif

template <class T>
struct Simd;

template <>
struct Simd<float> {
    using Int = int32_t;
    static constexpr int kLanes = kVectorBytes / 4;
    typedef float Vec __attribute__((vector_size(kVectorBytes)));
    typedef int32_t IntVec __attribute__((vector_size(kVectorBytes)));
};

template <>
struct Simd<double> {
    using Int = int64_t;
    static constexpr int kLanes = kVectorBytes / 8;
    typedef double Vec __attribute__((vector_size(kVectorBytes)));
    typedef int64_t IntVec __attribute__((vector_size(kVectorBytes)));
};

template <class T>
using Vec = typename Simd<T>::Vec;
template <class T>
using IntVec = typename Simd<T>::IntVec;

template <class T>
inline Vec<T> broadcast(T x) {
    return x - Vec<T>{};  // x - 0 keeps the sign of a zero, which x + 0 would lose
}

template <class T>
inline Vec<T> load(const T* p) {
    return *reinterpret_cast<const Vec<T>*>(p);
}

template <class T>
inline void store(T* p, Vec<T> v) {
    *reinterpret_cast<Vec<T>*>(p) = v;
}

// Both return b where either is NaN: with the constant first, a NaN in the data is never clamped away.
template <class V>
inline V maximum(V a, V b) {
    return a > b ? a : b;
}

template <class V>
inline V minimum(V a, V b) {
    return a < b ? a : b;
}

template <class T>
inline Vec<T> absolute(Vec<T> v) {
    constexpr int kSignBit = sizeof(T) * 8 - 1;
    return (Vec<T>)((IntVec<T>)v & ~(IntVec<T>{} + (typename Simd<T>::Int(1) << kSignBit)));
}

// f at each lane: for functions that have no vector form worth keeping (the float64 path).
template <class T, class F>
inline Vec<T> each_lane(Vec<T> v, F f) {
    for (int lane = 0; lane < Simd<T>::kLanes; ++lane) v[lane] = f(v[lane]);
    return v;
}

}  // namespace lmn::LMN_ISA
