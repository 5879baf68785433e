// Cells kept between the bends of a network whose affine maps are computed elsewhere, and cut by one bend at a time: by the
// lines of an activation's units, or by which member of each window is the largest.
#pragma once

#include <cstdint>
#include <vector>

#include "cell.hpp"
#include "subdivide.hpp"

namespace lmn {

// Cells by columns, each as csrc/cell.hpp has it. `hash` is the sum of the keys of the sides that a cell is on.
struct Cells {
    int dimension = 0;
    std::vector<int64_t> vertex_start{0}, facet_start{0}, edge_start{0};
    std::vector<double> x;  // of each cell [axis][vertex]
    std::vector<double> slack;
    std::vector<uint64_t> zero;
    std::vector<uint64_t> facet;
    std::vector<int32_t> label;
    std::vector<Edge> edge;
    std::vector<uint64_t> hash;

    int64_t size() const { return int64_t(hash.size()); }
};

Cells cube_of(int dimension, int32_t first_line);  // one cell; the numbers of its sides start at first_line
Cells part_of(const Cells&, int64_t first, int64_t last);
Subdivision described(const Cells&);               // what is told of regions: sizes, centres, vertices, facets; no maps

// The values of units at the origin and at the unit points of the cube's axes, for each cell's affine map; and the sizes of the
// terms that they are summed from.
struct Units {
    int64_t count;
    const double* value;  // [cell][1 + dimension][unit]
    const double* size;   // [unit]
    double relative_tolerance;
};

struct UnitLines {
    int64_t count;
    const int32_t* unit;       // [line] sorted by unit and breakpoint
    const double* breakpoint;  // [line]
    int32_t first;             // the first line's number in the network
};

struct UnitWindows {
    int64_t count, width;
    const int64_t* member;  // [window][width] units; -1 where a window has fewer
    int sign;               // 1: the largest member counts; -1: the smallest
    int bits;               // in a pattern, of a window
    int32_t first;          // the number of the first window's first member among the network's lines
};

// Cells cut: the parts of each, their bits, and the tree of cuts.
struct CutCells {
    Cells cells;
    std::vector<int64_t> parent;   // [cell]
    std::vector<uint64_t> pattern; // [cell][word] above a line; or the position of each window's largest member
    int64_t n_words = 0;
    Branches tree;                 // a child is a cut, or ~cell; several may lead to one cell
    std::vector<int64_t> root;     // [parent] the cut that it begins with, or ~cell where it is not cut
    bool stopped = false;          // there are more than were allowed, or the caller wanted no more: all else is empty
    int64_t n_found = 0;           // by then
};

// poll is called now and then on the calling thread; if it returns true, the cutting stops.
CutCells cut_by_lines(const Cells&, const Units&, const UnitLines&, int64_t max_cells, int threads, const Poll& poll);
CutCells cut_by_windows(const Cells&, const Units&, const UnitWindows&, int64_t max_cells, int threads, const Poll& poll);

}  // namespace lmn
