// Derivatives of an alternating chain of affine maps and activations at many points: the data, and the kernel's entry points.
//
// With z_0 = W_first x + b and z_{l+1} = W_l act_l(z_l) + b_l, the local Jacobian of the last affine map's output is
//     A(x) = W_last diag(act'(z_last)) ... W_0 diag(act'(z_0)) W_first.
// A tile of points goes forward together, one point a lane, and leaves the slopes act'(z) behind. The product is then taken from
// the side with fewer rows: from the outputs (reverse), a row of W_last at a time, or from the inputs (forward).
#pragma once

#include <cstdint>

namespace lmn {

inline constexpr int kMostLayers = 64;  // that a sweep over active units takes

// A matrix (rows, columns) in panels of as many columns as registers hold, [panel][row][column in panel], the last one filled up
// with zeros: csrc/packed.hpp. Above its first_row a panel is zero. Without values, there is none.
template <class T>
struct Panels {
    int rows, columns;
    const T* values;
    const int32_t* first_row;  // [panel]
};

// One activation and the affine map after it.
template <class T>
struct SlopeLayer {
    int units;
    int core;  // index into kernels/activations.py: CORES
    T p0, p1, kink;
    const T* scale;        // [unit] act(z) = scale core(z) + slope z + a constant, which is part of the bias after it
    const T* slope;        // [unit]
    const T* least_slope;  // [unit] scale times the core's limit far below zero, plus slope: what slopes are told from
    const T* breakpoints;  // that a unit is counted by if its pre-activations lie on both sides
    int n_breakpoints;
    int outputs;          // of the affine map after it
    const T* weights;     // packed (outputs, units); null where the chain ends in this activation
    const T* transposed;  // packed (units, outputs)
    Panels<T> back;       // (outputs, units), in reverse, where slopes may be zero
    const T* bias;        // [output]
};

template <class T>
struct SlopeChain {
    int n_in, n_out, n_layers;
    const T* first;             // packed (units of the first layer, n_in); null where the chain starts with an activation
    const T* first_transposed;  // packed (n_in, units)
    const T* first_bias;        // [unit]
    const T* last;              // packed (n_last, units of the first layer): what a reverse sweep may end in instead of first
    int n_last;
    Panels<T> first_back, last_back;  // (units, n_in) and (units, n_last)
    const SlopeLayer<T>* layers;
    bool reverse;
    bool sparse;    // whether a reverse sweep leaves units out: the matrices on its way are then in panels
    int n_rows;     // n_out in reverse, n_in forward
    const T* rows;  // [row][unit] of W_last in reverse, of W_first transposed forward; null for the identity
    const T* columns;  // [unit][row] of the same, of a sparse sweep
};

// Where the Jacobians of a tile go: entry (point, row, column) is at out[point * point_stride + row * row_stride + ...], rows and
// columns as they are swept: (output, input) in reverse, (input, output) forward.
template <class T>
struct JacobianOutput {
    T* out;
    int64_t point_stride, row_stride, column_stride;
};

template <class T>
struct SlopeKernels {
    int tile_points, lanes;
    int64_t (*scratch_bytes)(const SlopeChain<T>&);
    // The Jacobians of count <= tile_points points x [point][n_in]; with to_last, those of the outputs by z_0, times last
    // transposed (reverse only).
    void (*jacobians)(const SlopeChain<T>&, const T* x, int count, bool to_last, JacobianOutput<T>, void* scratch);
    // The inner products of each Jacobian's rows, as they are swept: out [point][row][row].
    int64_t (*grams_bytes)(const SlopeChain<T>&, bool to_last);
    void (*grams)(const SlopeChain<T>&, const T* x, int count, bool to_last, double* out, void* scratch);
    // How many units of each layer have a breakpoint between the least and the greatest of their pre-activations over the
    // 2 n_directions vertices z ± shift, for some points, at most as many as are taken together: z [point][unit] and shifts
    // [direction][unit] are of the first layer, counts [point][layer].
    int (*together)(int n_directions);
    int64_t (*crossings_bytes)(const SlopeChain<T>&, int n_directions);
    void (*crossings)(const SlopeChain<T>&, const T* z, int count, const T* shifts, int n_directions, int64_t* counts, void* scratch);
};

struct JacobianKernels {
    int block_outputs;      // height of a packed block of weights
    int least_sparse_rows;  // from which on a sweep may leave units out
    SlopeKernels<float> f32;
    SlopeKernels<double> f64;
    const double* slope_limits;  // by core: its slope far below zero
    // By how much the slope of a core is above that, at n values, a multiple of kMostLanes: what the tests call.
    void (*core_slopes_f32)(int core, float p0, float p1, float kink, const float* z, float* out, int64_t n);
    void (*core_slopes_f64)(int core, double p0, double p1, double kink, const double* z, double* out, int64_t n);
};

}  // namespace lmn
