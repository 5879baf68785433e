// What a bend does to the affine maps of cells, once it is known on which side of its lines they are.
#pragma once

#include <cstdint>

namespace lmn {

// Maps as values at some points: [cell][point][unit]. The cells are parts of others, whose values are given.
struct PartValues {
    int64_t n_parts, n_points, n_units;
    const int64_t* parent;    // [part]
    const double* value;      // [parent][point][unit]
    const uint64_t* pattern;  // [part][word]
    int64_t n_words;
};

// out[part][point][unit] = slope[unit][piece] value + offset[unit][piece], the piece being the number of breakpoints passed.
void bend_units(const PartValues&, int64_t n_breakpoints, const double* slope, const double* offset, double* out, int threads);

// out[part][point][window] = value of the member that the window's bits name; member is [window][width].
void bend_windows(const PartValues&, int64_t n_windows, int64_t width, const int64_t* member, int bits, double* out, int threads);

}  // namespace lmn
