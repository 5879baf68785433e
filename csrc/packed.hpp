// Arrays laid out for tile_product.hpp.
#pragma once

#include <cstdint>
#include <vector>

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

// A matrix (rows, columns), whose entry (r, c) is at values[r * row_stride + c * column_stride], in panels of at most so many
// vectors of lanes, [panel][row][column in panel]; their widths differ by at most one vector.
template <class T>
Aligned<T> panelled(const double* values, int64_t rows, int64_t columns, int64_t lanes, int64_t most_vectors, int64_t row_stride,
                    int64_t column_stride, std::vector<int32_t>& first_row) {
    const int64_t vectors = (columns + lanes - 1) / lanes, panels = (vectors + most_vectors - 1) / most_vectors;
    auto out = aligned<T>(rows * vectors * lanes);
    T* to = out.get();
    for (int64_t p = 0, first = 0; p < panels; ++p) {
        const int64_t width = (vectors / panels + (p < vectors % panels)) * lanes;
        int32_t zero_rows = 0;
        for (int64_t r = 0; r < rows; ++r) {
            bool zero = true;
            for (int64_t c = first; c < first + width; ++c, ++to) {
                *to = c < columns ? T(values[r * row_stride + c * column_stride]) : T(0);
                zero = zero && *to == 0;
            }
            if (zero && zero_rows == r) ++zero_rows;
        }
        first_row.push_back(zero_rows);
        first += width;
    }
    return out;
}

}  // namespace lmn
