#pragma once

#include <deque>
#include <string>
#include <vector>

#include "aligned.hpp"
#include "jacobians.hpp"

namespace lmn {

const JacobianKernels& jacobian_kernels_of(const std::string& isa);  // "": the best that this machine runs

struct SlopeLayerData {  // row-major; borrowed while a Slopes is made
    int64_t units, outputs;
    int core;
    double p0, p1, kink;
    const double* scale;    // (units)
    const double* slope;    // (units)
    const double* weights;  // (outputs, units), or null
    const double* bias;     // (outputs)
    const double* breakpoints;
    int64_t n_breakpoints;
    bool may_be_flat;  // whether its slope is zero on an interval
};

// A chain whose derivatives are taken in T.
template <class T>
class Slopes {
public:
    // first is (units of the first layer, n_in), or null where the chain starts with an activation; last (n_last, units), or null.
    Slopes(int64_t n_in, int64_t n_out, const double* first, const double* first_bias, const std::vector<SlopeLayerData>& layers,
           const double* last, int64_t n_last, bool reverse, const std::string& isa);

    // The Jacobians of points x (n, n_in) into out (n, n_out, n_in); with to_last, those by the first pre-activations times
    // last transposed, (n, n_out, n_last).
    void jacobians(const T* x, int64_t n, bool to_last, T* out, int threads);

    // The inner products of the Jacobians' rows, (n, n_rows, n_rows): of n_out in a reverse sweep, of n_in columns in a forward one.
    void grams(const T* x, int64_t n, bool to_last, double* out, int threads);

    // For points with pre-activations z (n, units of the first layer), counts (n, n_layers); shifts are (n_directions, units).
    void crossings(const T* z, int64_t n, const T* shifts, int64_t n_directions, int64_t* counts, int threads);

    int64_t n_in() const { return chain_.n_in; }
    int64_t n_out() const { return chain_.n_out; }
    int64_t n_first() const { return chain_.layers[0].units; }
    int64_t n_layers() const { return chain_.n_layers; }
    int64_t n_rows() const { return chain_.n_rows; }
    int64_t n_last() const { return chain_.n_last; }

private:
    const T* kept(Aligned<T> array) { return arrays_.emplace_back(std::move(array)).get(); }
    Panels<T> panels(const double* values, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride);
    void* scratch(int worker) { return scratch_[size_t(worker)].get(); }
    int workers(int64_t n, int threads) const;
    void make_scratch(int threads, int64_t bytes);
    const SlopeKernels<T>& kernels() const;

    const JacobianKernels& kernels_;
    std::vector<Aligned<T>> arrays_;
    std::deque<std::vector<int32_t>> first_rows_;
    std::vector<Aligned<char>> scratch_;
    int64_t scratch_bytes_ = 0;
    std::vector<SlopeLayer<T>> layers_;
    SlopeChain<T> chain_;
};

}  // namespace lmn
