// The vector loops of the subdivision, for one instruction set: many lines or units against one cell.
#include "subdivide.hpp"

#include "simd.hpp"

namespace lmn::LMN_ISA {
namespace {

using V = Vec<double>;
using M = IntVec<double>;
inline constexpr int kLanes = Simd<double>::kLanes;
static_assert(kPad % kLanes == 0);

template <int D>
void ranges_in(int64_t n, const Maps& maps, int n_vertices, const double* const* x, double* low, double* high) {
    for (int64_t i = 0; i < n; i += kLanes) {
        V a[D];
        for (int d = 0; d < D; ++d) a[d] = load(maps.a[d] + i);
        const V c = load(maps.c + i);
        V lowest{}, highest{};
        for (int v = 0; v < n_vertices; ++v) {
            V z = c;
            for (int d = 0; d < D; ++d) z += a[d] * x[d][v];
            lowest = v == 0 ? z : minimum(lowest, z);
            highest = v == 0 ? z : maximum(highest, z);
        }
        store(low + i, lowest);
        store(high + i, highest);
    }
}

void ranges(int dimension, int64_t n, const Maps& maps, int n_vertices, const double* const* x, double* low, double* high) {
    switch (dimension) {
        case 1: return ranges_in<1>(n, maps, n_vertices, x, low, high);
        case 2: return ranges_in<2>(n, maps, n_vertices, x, low, high);
        default: return ranges_in<3>(n, maps, n_vertices, x, low, high);
    }
}

inline uint64_t bits_of(M mask) {
    uint64_t bits = 0;
    for (int lane = 0; lane < kLanes; ++lane) bits |= uint64_t(mask[lane] & 1) << lane;
    return bits;
}

uint64_t decide(int64_t n, const double* low, const double* high, const double* tolerance, const uint64_t* key, uint64_t* above,
                uint64_t* cuts, uint64_t* touches) {
    typedef uint64_t Keys __attribute__((vector_size(kVectorBytes)));
    Keys sum{};
    for (int64_t word = 0; word * 64 < n; ++word) {
        uint64_t above_word = 0, cuts_word = 0, touches_word = 0;
        for (int64_t i = word * 64; i < n && i < word * 64 + 64; i += kLanes) {
            const V l = load(low + i), h = load(high + i), t = load(tolerance + i);
            const M reaches_below = l < -t, reaches_above = h > t;
            const M is_above = reaches_above & ~reaches_below;
            const M on = ~(reaches_above & reaches_below) & ~((l > t) | (h < -t));
            sum += *reinterpret_cast<const Keys*>(key + i) & reinterpret_cast<const Keys&>(is_above);
            above_word |= bits_of(is_above) << (i % 64);
            cuts_word |= bits_of(reaches_above & reaches_below) << (i % 64);
            touches_word |= bits_of(on) << (i % 64);
        }
        const uint64_t valid = n - word * 64 >= 64 ? ~uint64_t(0) : (uint64_t(1) << (n - word * 64)) - 1;
        above[word] = above_word & valid;
        cuts[word] = cuts_word & valid;
        touches[word] = touches_word & valid;
    }
    uint64_t total = 0;  // the keys beyond the last line are zero
    for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
    return total;
}

template <int D>
void add_in(int64_t n_units, int64_t count, const double* const* weight, const double* rows, const Maps& to) {
    for (int64_t u = 0; u < n_units; u += kLanes) {
        V a[D], c = load(to.c + u), size = load(to.size + u);
        for (int d = 0; d < D; ++d) a[d] = load(to.a[d] + u);
        const double* row = rows;
        for (int64_t k = 0; k < count; ++k, row += D + 2) {
            const V w = load(weight[k] + u);
            for (int d = 0; d < D; ++d) a[d] += w * row[d];
            c += w * row[D];
            size += absolute<double>(w) * row[D + 1];
        }
        for (int d = 0; d < D; ++d) store(to.a[d] + u, a[d]);
        store(to.c + u, c);
        store(to.size + u, size);
    }
}

void add(int dimension, int64_t n_units, int64_t count, const double* const* weight, const double* rows, const Maps& to) {
    switch (dimension) {
        case 1: return add_in<1>(n_units, count, weight, rows, to);
        case 2: return add_in<2>(n_units, count, weight, rows, to);
        default: return add_in<3>(n_units, count, weight, rows, to);
    }
}

void tolerances(int dimension, int64_t n, const Maps& maps, double relative, double* tolerance) {
    for (int64_t i = 0; i < n; i += kLanes) {
        V terms = load(maps.size + i) + absolute<double>(load(maps.c + i));
        for (int d = 0; d < dimension; ++d) terms += absolute<double>(load(maps.a[d] + i));
        store(tolerance + i, relative * terms);
    }
}

}  // namespace

extern const SubdivideKernels subdivide_kernels;
const SubdivideKernels subdivide_kernels = {ranges, decide, add, tolerances};

}  // namespace lmn::LMN_ISA
