// Arrays laid out for tile_product.hpp.
#pragma once

#include <cstdint>

#include "aligned.hpp"

namespace lmn {

template <class T>
Aligned<T> converted(const double* values, int64_t count) {
    auto out = aligned<T>(count);
    for (int64_t i = 0; i < count; ++i) out[i] = T(values[i]);
    return out;
}

// A matrix (outputs, units), whose entry (k, c) is at weights[k * output_stride + c * unit_stride], as
// [output block][unit][output in block]; blocks differ in height by at most one.
template <class T>
Aligned<T> packed(const double* weights, int64_t outputs, int64_t units, int64_t block_outputs, int64_t output_stride,
                  int64_t unit_stride) {
    auto out = aligned<T>(outputs * units);
    const int64_t blocks = (outputs + block_outputs - 1) / block_outputs;
    T* to = out.get();
    for (int64_t b = 0, k = 0; b < blocks; ++b) {
        const int64_t count = outputs / blocks + (b < outputs % blocks);
        for (int64_t c = 0; c < units; ++c)
            for (int64_t o = 0; o < count; ++o) *to++ = T(weights[(k + o) * output_stride + c * unit_stride]);
        k += count;
    }
    return out;
}

}  // namespace lmn
