// Weights laid out for the kernels.
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

// weights[output * row + unit * column] to [block of outputs][unit][output in block]; the blocks, of at most block_outputs, differ
// in height by one or not at all.
template <class T>
Aligned<T> packed(const double* weights, int64_t outputs, int64_t units, int64_t row, int64_t column, int64_t block_outputs) {
    auto out = aligned<T>(outputs * units);
    const int64_t blocks = (outputs + block_outputs - 1) / block_outputs;
    T* to = out.get();
    for (int64_t b = 0, k = 0; b < blocks; ++b) {
        const int64_t count = outputs / blocks + (b < outputs % blocks);
        for (int64_t c = 0; c < units; ++c)
            for (int64_t o = 0; o < count; ++o) *to++ = T(weights[(k + o) * row + c * column]);
        k += count;
    }
    return out;
}

}  // namespace lmn
