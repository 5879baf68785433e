// The inner products of a matrix's rows with each other, summed in float64.
#pragma once

#include "scratch.hpp"

namespace lmn::LMN_ISA {
namespace {

inline constexpr int kGramBlock = 2;  // rows that are held against as many others

inline int64_t gram_width(int64_t columns) { return (columns + kLanes<double> - 1) / kLanes<double> * kLanes<double>; }
inline int64_t gram_rows(int64_t rows) { return (rows + kGramBlock - 1) / kGramBlock * kGramBlock; }

inline double sum_of(Vec<double> v) {
    double sum = 0;
    for (int lane = 0; lane < kLanes<double>; ++lane) sum += v[lane];
    return sum;
}

// out [row][row] of values [row][column]; wide has room for gram_rows x gram_width numbers.
template <class T>
void gram(const T* __restrict values, int rows, int columns, double* __restrict wide, double* __restrict out) {
    const int64_t width = gram_width(columns);
    for (int64_t r = 0; r < gram_rows(rows); ++r)
        for (int64_t c = 0; c < width; ++c) wide[r * width + c] = r < rows && c < columns ? double(values[r * columns + c]) : 0;
    for (int a = 0; a < rows; a += kGramBlock)
        for (int b = 0; b <= a; b += kGramBlock) {
            Vec<double> sums[kGramBlock][kGramBlock] = {};
            for (int64_t c = 0; c < width; c += kLanes<double>) {
                Vec<double> x[kGramBlock], y[kGramBlock];
                for (int i = 0; i < kGramBlock; ++i) x[i] = load(wide + (a + i) * width + c);
                for (int i = 0; i < kGramBlock; ++i) y[i] = load(wide + (b + i) * width + c);
                for (int i = 0; i < kGramBlock; ++i)
                    for (int j = 0; j < kGramBlock; ++j) sums[i][j] += x[i] * y[j];
            }
            for (int i = 0; i < kGramBlock && a + i < rows; ++i)
                for (int j = 0; j < kGramBlock && b + j < rows; ++j)
                    out[(a + i) * rows + b + j] = out[(b + j) * rows + a + i] = sum_of(sums[i][j]);
        }
}

}  // namespace
}  // namespace lmn::LMN_ISA
