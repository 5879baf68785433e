// Exact subdivision of a cube into the cells on which a chain of affine maps and piecewise-linear activations is affine.
//
// Layer by layer, each cell of the layers before is cut by the layer's lines: the places where a unit passes a breakpoint. A
// line that misses a cell is decided for everything inside it, so the walk down the tree of cuts tests every line only in the
// cells that it still cuts, and adds each decided unit's share of the next layer's map once, for all the cells below.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "aligned.hpp"

namespace lmn {

inline constexpr int kPad = 8;  // arrays over units and lines can be read up to a multiple of this
inline int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// ---- the vector kernels, compiled for each instruction set (subdivide_isa.cpp) ----------------------------------------

// An affine function of the cell's coordinates for each of some units or lines, by columns: a[0..D-1], c, and the size of the
// terms that it was summed from, to which its rounding error is relative.
struct Maps {
    double* a[3];
    double* c;
    double* size;
};

struct SubdivideKernels {
    // lowest and highest value over the vertices, of lines [0, padded(n))
    void (*ranges)(int dimension, int64_t n, const Maps&, int n_vertices, const double* const* x, double* low, double* high);
    // Bits over the lines: above the cell, cutting it, touching it. Sum of the keys of those above.
    uint64_t (*decide)(int64_t n, const double* low, const double* high, const double* tolerance, const uint64_t* key,
                       uint64_t* above, uint64_t* cuts, uint64_t* touches);
    // to[u] += Σ_k weight[k][u] (the k-th map), for u in [0, padded(n_units)); maps as rows (a.., c, size)
    void (*add)(int dimension, int64_t n_units, int64_t count, const double* const* weight, const double* rows, const Maps& to);
    // tolerance[i] = relative (size + |a|_1 + |c|)
    void (*tolerances)(int dimension, int64_t n, const Maps&, double relative, double* tolerance);
};

const SubdivideKernels& subdivide_kernels();

// ---- the chain -----------------------------------------------------------------------------------------------------

// One layer of units: its lines, sorted by unit and breakpoint, and the affine map after its activation. Past line i the
// activation's slope is slope_above[i]; the first line of a unit also says what it is before. So that every line is decided
// once, a line's share is counted relative to its own value v = z - breakpoint: below it the share slope_below v +
// offset_below, above it slope_above v + offset_above, and the activation is the sum over the unit's lines.
struct PieceLayer {
    int64_t n_units, n_lines, n_next;
    const int32_t* unit;        // [line]
    const double* breakpoint;   // [line]
    const double* slope_below;  // [line]
    const double* offset_below;
    const double* slope_above;
    const double* offset_above;
    const double* weight;       // (n_next, n_units), row-major, of the affine map after it
    const double* bias;         // (n_next)
};

struct PieceChain {
    int dimension;
    int64_t n_first;            // units of the first layer, or outputs where there is none
    const double* a;            // (n_first, dimension): the first affine map on the cube [-1, 1]^dimension
    const double* c;            // (n_first)
    const double* size;         // (n_first) of the terms that these were summed from
    std::vector<PieceLayer> layers;
    double relative_tolerance;
};

// The tree of cuts: points with a . x + c > 0 are in a cut's first child, the others in its second.
struct Branches {
    std::vector<double> cut;     // [cut][dimension + 1]: a.., c
    std::vector<int64_t> child;  // [cut][2]: a cut, or ~region

    int64_t size() const { return int64_t(child.size()) / 2; }
    void attach(int64_t parent, int side, int64_t what) {
        if (parent >= 0) child[2 * parent + side] = what;
    }
};

using Poll = std::function<bool()>;

// What was found, by columns, in an order that does not depend on the number of threads. Coordinates are the cube's.
struct Subdivision {
    int64_t n_regions = 0, n_words = 0, n_out = 0;
    std::vector<int64_t> after_layer;        // cells after each layer
    std::vector<uint64_t> pattern;           // [region][word]
    std::vector<double> measure;             // [region]
    std::vector<double> centre;              // [region][dimension] a point inside
    std::vector<double> map;                 // [region][output][dimension + 1]: a.., c
    std::vector<int32_t> n_vertices;         // [region]
    std::vector<double> vertex;              // [vertex][dimension]
    std::vector<uint64_t> vertex_id;         // [vertex] equal in all regions that share it
    std::vector<int32_t> n_facets;           // [region]
    std::vector<uint64_t> facet_id;          // [facet] equal in the two regions that share it
    std::vector<int32_t> facet_line;         // [facet] the line on which it lies, or n_lines + the domain's side
    std::vector<uint64_t> edge_id;           // three dimensions only: every edge of every region
    Branches tree;
    bool stopped = false;                    // by max_regions or by the caller; n_regions is then what was found
};

// Vertices, edges and facets are collected only with `geometry`. poll is called now and then on the calling thread; if it returns true, the walk stops.
Subdivision subdivide(const PieceChain&, bool geometry, int64_t max_regions, int threads, const Poll& poll);

}  // namespace lmn
