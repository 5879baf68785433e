// The kernel of local complexity for one instruction set: which units have a breakpoint among the vertices around a point.
//
// Where all activations are piecewise linear, most units stay on one piece at all vertices x ± r v_p of a point, and the network
// around it is affine but for the few that do not. The pre-activations of a layer at the vertices are then
//     z(± p) = c ± d_p + sum over those units e of their activations at the vertex times column e,
// and 1 + n_directions + (units that crossed) columns go through the affine maps instead of 2 n_directions vertices; those of a
// few points together. What any other chain needs, and a point at which as many units crossed as there are directions, is run
// vertex by vertex; so is one at which something is not finite, for which a layer's count then is kNotFinite.
#include <string.h>

#include "slope_tile.hpp"

namespace lmn::LMN_ISA {
namespace {

constexpr int kPiecewiseLinearCores = 3;  // identity, |z|, clamp: the first of kernels/activations.py: CORES
constexpr int kMostTogether = 8, kMostColumns = 512;
constexpr int64_t kNotFinite = -1;

// ---- vertex by vertex --------------------------------------------------------------------------------------------

// Bits 2 b and 2 b + 1 of a unit: whether a pre-activation lies above breakpoint b, and whether one does not.
template <class T>
uint64_t sides_of(const SlopeLayer<T>& layer, T low, T high) {
    uint64_t sides = 0;
    for (int b = 0; b < layer.n_breakpoints; ++b) {
        sides |= uint64_t(high > layer.breakpoints[b]) << (2 * b);
        sides |= uint64_t(!(low > layer.breakpoints[b])) << (2 * b + 1);
    }
    return sides;
}

bool crosses(uint64_t sides) { return (sides & (sides >> 1) & 0x5555555555555555) != 0; }

// What is not finite is lost in a minimum, but not in a sum of zeros: x * 0 is NaN there.
template <class T>
bool all_zero(Vec<T> zeros) {
    T sum = T(0);
    for (int lane = 0; lane < kLanes<T>; ++lane) sum += zeros[lane];
    return sum == T(0);
}

// Returns whether all pre-activations are finite.
template <class T>
bool note_sides(const SlopeLayer<T>& layer, const T* z, uint64_t* sides) {
    Vec<T> zeros{};
    for (int64_t c = 0; c < layer.units; ++c) {
        Vec<T> least = load(z + c * kTile<T>), most = least;
        zeros += least * T(0);
        for (int s = 1; s < kSteps; ++s) {
            const Vec<T> x = load(z + c * kTile<T> + s * kLanes<T>);
            zeros += x * T(0);
            least = minimum(least, x);
            most = maximum(most, x);
        }
        T low = least[0], high = most[0];
        for (int lane = 1; lane < kLanes<T>; ++lane) {
            low = least[lane] < low ? least[lane] : low;
            high = most[lane] > high ? most[lane] : high;
        }
        sides[c] |= sides_of(layer, low, high);
    }
    return all_zero<T>(zeros);
}

template <class T>
void by_vertices(const SlopeChain<T>& chain, const T* z, const T* shifts, int n_directions, int64_t* counts, void* memory) {
    Scratch<T> scratch(chain, memory);
    const int n_vertices = 2 * n_directions, first_units = chain.layers[0].units;
    // The slopes' place is not needed here: it holds the sides, of 8 bytes a unit, which a tile's row of a unit has room for.
    uint64_t* const all = reinterpret_cast<uint64_t*>(scratch.slopes);
    const int64_t n_units = units_of_all_layers(chain);
    for (int64_t c = 0; c < n_units; ++c) all[c] = 0;
    for (int l = 0; l < chain.n_layers; ++l) counts[l] = 0;
    for (int first = 0; first < n_vertices; first += kTile<T>) {
        for (int64_t c = 0; c < first_units; ++c)
            for (int p = 0; p < kTile<T>; ++p) {
                const int vertex = first + p < n_vertices ? first + p : n_vertices - 1;
                const T shift = shifts[int64_t(vertex / 2) * first_units + c];
                scratch.a[c * kTile<T> + p] = vertex % 2 ? z[c] - shift : z[c] + shift;
            }
        uint64_t* sides = all;
        for (int l = 0; l < chain.n_layers; ++l) {
            const SlopeLayer<T>& layer = chain.layers[l];
            if (!note_sides(layer, scratch.a, sides)) counts[l] = kNotFinite;
            sides += layer.units;
            if (l + 1 == chain.n_layers) break;
            kSlopes<T>[layer.core].activate_only(layer, scratch.a, nullptr);
            affine(layer.weights, layer.bias, layer.outputs, layer.units, scratch.a, scratch.b);
            scratch.swap();
        }
    }
    const uint64_t* sides = all;
    for (int l = 0; l < chain.n_layers; sides += chain.layers[l++].units)
        if (counts[l] != kNotFinite)
            for (int c = 0; c < chain.layers[l].units; ++c) counts[l] += crosses(sides[c]);
}

// ---- by columns --------------------------------------------------------------------------------------------------

// The columns of one point: its middle, the directions, and those of the units that crossed.
struct Columns {
    int64_t at;
    int extra;
    bool given_up;
};

template <class T>
int64_t padded(int64_t n) {
    return (n + kTile<T> - 1) / kTile<T> * kTile<T>;
}

template <class T>
int points_together(int n_directions) {
    const int points = kMostColumns / (1 + n_directions);
    const int most = kTile<T> < kMostTogether ? kTile<T> : kMostTogether;  // a point is a lane
    return points < 1 ? 1 : points > most ? most : points;
}

// Gives the points their columns, and returns how long a row of them is.
template <class T>
int64_t placed(Columns* columns, int count, int n_directions) {
    int64_t n = 0;
    for (int g = 0; g < count; ++g) {
        columns[g].at = n;
        n += columns[g].given_up ? 0 : 1 + n_directions + columns[g].extra;
    }
    return padded<T>(n > 0 ? n : 1);
}

template <class T>
int64_t most_columns(int n_directions) {
    return padded<T>(points_together<T>(n_directions) * (1 + 2 * int64_t(n_directions)));
}

template <class T>
struct Work {
    T *a, *b;                // [unit][column]: before and after an activation
    T *low, *value, *slope;  // [unit][tile], a lane a point: the least pre-activation, the activation and its slope there
    T* at_vertices;          // [point][extra][vertex]: the activations of the units that crossed
    T* vertices;             // [vertex], and room for a tile
    uint8_t* crossed;        // [unit][point]

    Work(const SlopeChain<T>& chain, int n_directions, char*& cursor) {
        const int64_t units = widest(chain), p = n_directions;
        a = take<T>(cursor, units * most_columns<T>(n_directions));
        b = take<T>(cursor, units * most_columns<T>(n_directions));
        low = take<T>(cursor, units * kTile<T>);
        value = take<T>(cursor, units * kTile<T>);
        slope = take<T>(cursor, units * kTile<T>);
        at_vertices = take<T>(cursor, points_together<T>(n_directions) * p * 2 * p);
        vertices = take<T>(cursor, padded<T>(2 * p));
        crossed = take<uint8_t>(cursor, units * kMostTogether);
    }
};

// The pre-activations of a unit at the vertices: + d_p first, then - d_p.
template <class T>
void at_vertices(const T* c, int n_directions, int extra, const T* of_extra, T* z) {
    for (int p = 0; p < n_directions; ++p) {
        z[p] = c[0] + c[1 + p];
        z[n_directions + p] = c[0] - c[1 + p];
    }
    for (int e = 0; e < extra; ++e) {
        const T w = c[1 + n_directions + e];
        const T* v = of_extra + int64_t(e) * 2 * n_directions;
        for (int p = 0; p < 2 * n_directions; ++p) z[p] += w * v[p];
    }
}

// The largest |d|, not finite where one is not: as integers, infinity is above all numbers and NaN above that.
template <class T>
T largest_size(const T* d, int n) {
    using Int = typename Simd<T>::Int;
    constexpr Int kWithoutSign = ~(Int(1) << (sizeof(T) * 8 - 1));
    IntVec<T> sizes{};
    int p = 0;
    for (; p + kLanes<T> <= n; p += kLanes<T>) {
        IntVec<T> x;
        memcpy(&x, d + p, sizeof(x));
        sizes = maximum(sizes, x & kWithoutSign);
    }
    Int most = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) most = sizes[lane] > most ? sizes[lane] : most;
    for (; p < n; ++p) {
        Int x;
        memcpy(&x, d + p, sizeof(x));
        x &= kWithoutSign;
        most = x > most ? x : most;
    }
    T size;
    memcpy(&size, &most, sizeof(size));
    return size;
}

// The least and the greatest of n values; returns whether all are finite.
template <class T>
bool range_of(const T* z, int n, T& low, T& high) {
    Vec<T> least = broadcast(z[0]), most = least, zeros{};
    int v = 0;
    for (; v + kLanes<T> <= n; v += kLanes<T>) {
        Vec<T> x;
        memcpy(&x, z + v, sizeof(x));
        zeros += x * T(0);
        least = minimum(least, x);
        most = maximum(most, x);
    }
    T zero = T(0);
    low = high = z[0];
    for (; v < n; ++v) {
        zero += z[v] * T(0);
        low = z[v] < low ? z[v] : low;
        high = z[v] > high ? z[v] : high;
    }
    for (int lane = 0; lane < kLanes<T>; ++lane) {
        low = least[lane] < low ? least[lane] : low;
        high = most[lane] > high ? most[lane] : high;
    }
    return zero == T(0) && all_zero<T>(zeros);
}

// Which units of a layer cross at which points, and the least of their pre-activations there; gives up points at which one is
// not finite.
template <class T>
void find_crossings(const SlopeLayer<T>& layer, Work<T>& work, Columns* columns, int count, int64_t row, int n_directions,
                    int64_t* counts, int n_layers) {
    for (int64_t u = 0; u < layer.units; ++u) {
        for (int g = 0; g < kTile<T>; ++g) work.low[u * kTile<T> + g] = T(0);
        for (int g = 0; g < count; ++g) {
            if (columns[g].given_up) continue;
            const T* c = work.a + u * row + columns[g].at;
            T low, high;
            bool finite;
            if (columns[g].extra == 0) {
                const T size = largest_size(c + 1, n_directions);
                low = c[0] - size;
                high = c[0] + size;
                finite = (high - low) * T(0) == T(0);
            } else {
                T* z = work.vertices;
                at_vertices(c, n_directions, columns[g].extra, work.at_vertices + int64_t(g) * n_directions * 2 * n_directions, z);
                finite = range_of(z, 2 * n_directions, low, high);
            }
            if (!finite) {
                columns[g].given_up = true;
                continue;
            }
            const bool is_crossed = crosses(sides_of(layer, low, high));
            work.crossed[u * kMostTogether + g] = is_crossed;
            counts[int64_t(g) * n_layers] += is_crossed;
            work.low[u * kTile<T> + g] = low;
        }
    }
}

// The layer's activations as columns: a unit on one piece is that piece; one that crossed has a column of its own.
template <class T>
void apply_pieces(const SlopeLayer<T>& layer, Work<T>& work, const Columns* before, const Columns* after, int count,
                  int64_t row_before, int64_t row_after, int n_directions) {
    memcpy(work.value, work.low, size_t(layer.units * kTile<T>) * sizeof(T));
    kSlopes<T>[layer.core].activate(layer, work.value, work.slope);
    int next[kMostTogether];
    for (int g = 0; g < count; ++g) next[g] = before[g].extra;
    for (int64_t u = 0; u < layer.units; ++u) {
        T* row = work.b + u * row_after;
        memset(row, 0, size_t(row_after) * sizeof(T));
        for (int g = 0; g < count; ++g) {
            if (after[g].given_up) continue;
            const T* c = work.a + u * row_before + before[g].at;
            T* to = row + after[g].at;
            if (!work.crossed[u * kMostTogether + g]) {
                const int64_t lane = u * kTile<T> + g;
                const T slope = work.slope[lane], rest = work.value[lane] - slope * work.low[lane];
                to[0] = slope * c[0] + rest;
                for (int j = 1; j <= n_directions + before[g].extra; ++j) to[j] = slope * c[j];
                continue;
            }
            const int n_vertices = 2 * n_directions, e = next[g]++;
            T* const of_extra = work.at_vertices + int64_t(g) * n_directions * n_vertices;
            to[1 + n_directions + e] = T(1);
            at_vertices(c, n_directions, before[g].extra, of_extra, work.vertices);
            SlopeLayer<T> one = layer;
            one.units = 1;
            one.scale += u;
            one.slope += u;
            for (int v = 0; v < n_vertices; v += kTile<T>) kSlopes<T>[layer.core].activate_only(one, work.vertices + v, nullptr);
            memcpy(of_extra + int64_t(e) * n_vertices, work.vertices, size_t(n_vertices) * sizeof(T));
        }
    }
}

template <class T>
void by_columns(const SlopeChain<T>& chain, const T* z, int count, const T* shifts, int n_directions, int64_t* counts,
                Work<T>& work, Columns* columns) {
    const int first_units = chain.layers[0].units;
    int64_t row = placed<T>(columns, count, n_directions);
    for (int64_t u = 0; u < first_units; ++u) {
        T* to = work.a + u * row;
        memset(to, 0, size_t(row) * sizeof(T));
        for (int g = 0; g < count; ++g) {
            to[columns[g].at] = z[int64_t(g) * first_units + u];
            for (int p = 0; p < n_directions; ++p) to[columns[g].at + 1 + p] = shifts[int64_t(p) * first_units + u];
        }
    }
    for (int p = 0; p < padded<T>(2 * n_directions); ++p) work.vertices[p] = T(0);
    for (int l = 0; l < chain.n_layers; ++l) {
        const SlopeLayer<T>& layer = chain.layers[l];
        find_crossings(layer, work, columns, count, row, n_directions, counts + l, chain.n_layers);
        if (l + 1 == chain.n_layers) return;
        Columns after[kMostTogether];
        for (int g = 0; g < count; ++g) {
            after[g] = columns[g];
            after[g].extra += int(counts[int64_t(g) * chain.n_layers + l]);
            after[g].given_up |= after[g].extra > n_directions;
        }
        const int64_t row_after = placed<T>(after, count, n_directions);
        apply_pieces(layer, work, columns, after, count, row, row_after, n_directions);
        for (int64_t tile = 0; tile < row_after; tile += kTile<T>)
            product<T, kSteps>(
                layer.weights, layer.outputs, layer.units, work.b + tile,
                [&](int k, const Vec<T>(&sums)[kSteps]) {
                    for (int s = 0; s < kSteps; ++s) store(work.a + k * row_after + tile + s * kLanes<T>, sums[s]);
                },
                row_after);
        for (int g = 0; g < count; ++g) {
            columns[g] = after[g];
            if (!after[g].given_up)
                for (int64_t k = 0; k < layer.outputs; ++k) work.a[k * row_after + after[g].at] += layer.bias[k];
        }
        row = row_after;
    }
}

template <class T>
bool has_pieces(const SlopeChain<T>& chain) {
    for (int l = 0; l < chain.n_layers; ++l)
        if (chain.layers[l].core >= kPiecewiseLinearCores) return false;
    return true;
}

}  // namespace

template <class T>
int together(int n_directions) {
    return points_together<T>(n_directions);
}

template <class T>
int64_t crossings_bytes(const SlopeChain<T>& chain, int n_directions) {
    char* cursor = nullptr;
    if (has_pieces(chain)) Work<T>(chain, n_directions, cursor);
    return reinterpret_cast<intptr_t>(cursor) + scratch_bytes(chain) + 64;
}

template <class T>
void crossings(const SlopeChain<T>& chain, const T* z, int count, const T* shifts, int n_directions, int64_t* counts, void* memory) {
    char* cursor = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
    Columns columns[kMostTogether] = {};
    if (has_pieces(chain)) {
        Work<T> work(chain, n_directions, cursor);
        for (int i = 0; i < count * chain.n_layers; ++i) counts[i] = 0;
        by_columns(chain, z, count, shifts, n_directions, counts, work, columns);
    } else {
        for (Columns& each : columns) each.given_up = true;
    }
    for (int g = 0; g < count; ++g)
        if (columns[g].given_up)
            by_vertices(chain, z + int64_t(g) * chain.layers[0].units, shifts, n_directions, counts + g * chain.n_layers, cursor);
}

template int together<float>(int);
template int together<double>(int);
template int64_t crossings_bytes<float>(const SlopeChain<float>&, int);
template int64_t crossings_bytes<double>(const SlopeChain<double>&, int);
template void crossings<float>(const SlopeChain<float>&, const float*, int, const float*, int, int64_t*, void*);
template void crossings<double>(const SlopeChain<double>&, const double*, int, const double*, int, int64_t*, void*);

}  // namespace lmn::LMN_ISA
