// Chains on points: data laid out for the kernels, tiles shared among threads.
#pragma once

#include <string>
#include <vector>

#include "aligned.hpp"
#include "chain.hpp"

namespace lmn {

template <class T>
const ChainKernel<T>& chain_kernel(const std::string& isa);  // "": the best that this machine runs

struct ChainLayerData {  // row-major
    int64_t units, outputs;
    int core;
    double p0, p1;
    const double *scale, *slope;  // (units)
    int64_t n_breakpoints;
    const double* breakpoints;
    const double *piece_slopes, *piece_offsets;  // (n_breakpoints + 1, units), or null where the activation is smooth
    const double *weights, *bias;                // (outputs, units), (outputs)
};

// What is wanted of the Jacobian A of shape (n_out, n_in): start (columns, units) are the rows of the last affine map's weights in
// reverse mode, the columns of the first one's in forward mode; end (rows, units) the other side's. Either may be replaced by a
// factor of it, which leaves products of rows or of columns as they are.
struct SweepData {
    bool reverse;
    int64_t columns, rows;
    const double *start, *end;
};

template <class T>
class PointChains {
public:
    PointChains(int64_t n_in, const double* first_weights, const double* first_bias, const std::vector<ChainLayerData>& layers,
                const SweepData& sweep, const std::string& isa);

    void forward(const T* x, int64_t n, T* y, uint64_t* words, int threads);
    void jacobians(const T* x, int64_t n, T* y, T* jacobian, T* gram, int threads);
    void jacobians_of_patterns(const uint64_t* words, int64_t n, T* jacobian, T* gram, int threads);
    // offset is (count, units of the first layer), crossings (n, n_layers).
    void crossings(const T* x, int64_t n, const double* offset, int64_t count, int32_t* crossings, int threads);

    const PointChain<T>& chain() const { return chain_; }

private:
    const T* kept(Aligned<T> array) { return arrays_.emplace_back(std::move(array)).get(); }
    JacobianOutput<T> output(T* jacobian, T* gram, int64_t first) const;
    template <class Body>
    void over_tiles(int64_t n, int64_t points, int threads, Body body);

    const ChainKernel<T>& kernel_;
    bool reverse_;
    std::vector<Aligned<T>> arrays_, scratch_;
    std::vector<ChainLayer<T>> layers_;
    std::vector<SweepStage<T>> stages_;
    PointChain<T> chain_{};
};

}  // namespace lmn
