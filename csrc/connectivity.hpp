// Linear connectivity of an alternating chain of activations and affine maps: the data, and the kernel's entry points.
//
// For a pair (i, j) and layer l the pre-activation along the segment is chord + deviation,
//     z_l(t) = z_l^i + t (z_l^j - z_l^i) + u_l(t),    u_0 = 0,    u_{l+1} = W_l (act(z_l) - its chord),
// exactly zero at both ends and for whatever is affine. Only deviations pass through the products, so nothing cancels;
// the output's deviation u gives 1 - r^2 as a ratio of sums of squares.
#pragma once

#include <cstdint>

namespace lmn {

inline constexpr int kMostLanes = 16;  // of any vector

inline constexpr int kCoreCount = 11;  // kernels/activations.py: CORES

template <class T>
struct LayerArrays {
    const T* scale;    // [unit] act(z) = scale core(z) + slope z + a constant
    const T* slope;    // [unit]
    const T* weights;  // [output block][unit][output in block], blocks differing in height by at most one; null where the
                       // chain ends in this activation
};

struct Layer {
    int units;    // of this activation
    int outputs;  // of the affine map after it
    int core;     // index into kernels/activations.py: CORES
    double p0, p1;
    const double* z;  // [unit][sample] pre-activations
    LayerArrays<float> f32;
    LayerArrays<double> f64;
};

struct Chain {
    int64_t n_points;
    int m;  // points a segment, both ends included
    int n_layers;
    const Layer* layers;
    int n_out;
    const double* y;            // [output][sample]
    const double* noise_f32;    // [output] variance that float32 rounding adds to a deviation, by estimate
    const double* noise_f64;    // the same for float64
    double constant;            // an output that moves by no more than this, of its size, is constant
    double tolerance;           // on r^2: pairs whose estimated float32 error is larger are done again in float64
    double tolerance_f64;       // and those whose float64 error is larger are given up: NaN
};

// Where a row of L goes: float32 or float64, whichever is not null; both (i, j) and (j, i) are written for j > i.
struct Output {
    float* f32;
    double* f64;
};

struct Kernel {
    const char* isa;
    int block_outputs;  // height of a packed block of weights
    // Row i of L: pairs (i, j) for j > i and j >= first_column. Returns how many were done in float64 after float32.
    // Scratch has scratch_bytes.
    int64_t (*row)(const Chain&, int64_t i, int64_t first_column, bool single, Output, void* scratch);
    int64_t (*scratch_bytes)(const Chain&);
    // core(z) at n values, a multiple of kMostLanes: what the tests of the approximations call.
    void (*core_f32)(int core, float p0, float p1, const float* z, float* out, int64_t n);
    void (*core_f64)(int core, double p0, double p1, const double* z, double* out, int64_t n);
    float (*multiply_adds)(int64_t count, int64_t* flop);
};

}  // namespace lmn
