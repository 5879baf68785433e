// The tree of cuts that a subdivision leaves, as a map from points to regions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmn {

// A cut sends points with a . x + c > 0 to its first child and the others to its second; a child is a cut, or ~region. The
// first cut is the root; without cuts all points are in region 0.
struct Tree {
    int dimension;
    int64_t n_cuts;
    const double* cut;     // [cut][dimension + 1]: a.., c
    const int64_t* child;  // [cut][2]
};

// The regions of points [n][dimension].
void locate(const Tree&, int64_t n, const double* x, int threads, int64_t* region);

// The points of a regular grid, the last axis fastest: axis d has count[d] points from first[d] on, step[d] >= 0 apart.
struct Raster {
    int64_t count[3];
    double first[3], step[3];
    double at(int axis, int64_t i) const { return first[axis] + double(i) * step[axis]; }
};

// out[point] = value[the point's region], of so many bytes each: plain numbers, which are copied.
void rasterise(const Tree&, const Raster&, size_t bytes, const void* value, int threads, void* out);

}  // namespace lmn
