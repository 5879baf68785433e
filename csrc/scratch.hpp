// What a kernel carves out of the memory that it is given, one array after the other, each at a cache line.
#pragma once

#include "simd.hpp"

namespace lmn::LMN_ISA {
namespace {

template <class T>
inline constexpr int kLanes = Simd<T>::kLanes;

template <class T>
T* take(char*& cursor, int64_t count) {
    T* p = reinterpret_cast<T*>(cursor);
    cursor += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return p;
}

}  // namespace
}  // namespace lmn::LMN_ISA
