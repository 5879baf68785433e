// A chain of affine maps and activations on points, x → W_1 x + b_1 → act_1 → W_2 · + b_2 → ... : the data, and the entry
// points of the kernels that run it (csrc/chain_isa.cpp): forward, its activation patterns, its local Jacobians, and its
// local complexity.
//
// The Jacobian is W_L D_{L-1} ... D_1 W_1 with D_l the diagonal of act_l' at the point. It is swept from its short side: from
// the outputs, columns are the outputs' rows of W_L and products go with the transposed weights (reverse mode); from the
// inputs, columns are those of W_1 (forward mode). A column is taken through all of the chain while it is in the cache.
#pragma once

#include <cstdint>

namespace lmn {

// An activation and the affine map after it. A piecewise-linear one is given by its pieces (n_breakpoints > 0): slope z +
// offset on each; a smooth one is scale core(z) + slope z, its constant being part of the bias after it.
template <class T>
struct ChainLayer {
    int units;    // of the activation
    int outputs;  // of the affine map
    int core;     // index into kernels/activations.py: CORES
    T p0, p1;
    const T* scale;  // [unit]
    const T* slope;  // [unit]
    int n_breakpoints;
    const T* breakpoint;    // ascending
    const T* piece_slope;   // [piece][unit]
    const T* piece_offset;  // [piece][unit]
    int first_word;         // of its bits in a pattern
    const T* weights;       // [block of outputs][unit][output in block]
    const T* bias;          // [output]
};

// One product of a sweep, and the layer whose derivatives scale its results (-1: none, the last).
template <class T>
struct SweepStage {
    int units, outputs;
    const T* weights;  // packed like a layer's
    int layer;
};

template <class T>
struct PointChain {
    int n_in, n_out, n_layers, n_words;
    const T* first_weights;  // packed, n_in to the first layer's units
    const T* first_bias;
    const ChainLayer<T>* layers;
    // The sweep: columns begin with those of a matrix, scaled by a layer's derivatives.
    int columns, rows, start_layer, n_stages;
    const T* start;  // [column][unit]
    const SweepStage<T>* stages;
    int units_in_all, lines_in_all, widest;  // units, and units times breakpoints, of all layers; of the widest layer or output
};

// Where results go; what is null is not asked for. Strides in values.
template <class T>
struct JacobianOutput {
    T* jacobian;  // [point], then by strides
    int64_t point, column, row;
    T* gram;  // [point][column][column]: products of the columns
};

// Local complexity: first[v] are the first affine map's values of the vertices' offsets.
template <class T>
struct Vertices {
    int count;         // of directions; the vertices are x ± r v
    const T* offset;   // [direction][unit of the first layer]: r W_1 v
};

template <class T>
struct ChainKernel {
    int block_outputs;  // height of a packed block of weights
    int lanes, points;  // of a vector; of a tile
    int64_t (*scratch_values)(const PointChain<T>&);
    // Up to `points` points x[point][n_in]: their outputs y[point][n_out] and patterns [point][n_words], each if not null.
    void (*forward)(const PointChain<T>&, const T* x, int n, T* y, uint64_t* words, T* scratch);
    // Their Jacobians; y too if not null.
    void (*jacobians)(const PointChain<T>&, const T* x, int n, T* y, JacobianOutput<T>, T* scratch);
    // Those of patterns, of a chain all of whose layers are piecewise linear.
    void (*jacobians_of_patterns)(const PointChain<T>&, const uint64_t* words, int n, JacobianOutput<T>, T* scratch);
    // crossings[point][layer]: units on different pieces at different vertices. A layer without breakpoints has none.
    void (*crossings)(const PointChain<T>&, const T* x, int n, Vertices<T>, int32_t* crossings, T* scratch);
    // core(z) and its derivative at n values, a multiple of kMostLanes.
    void (*core)(int core, T p0, T p1, const T* z, T* value, T* slope, int64_t n);
};

}  // namespace lmn
