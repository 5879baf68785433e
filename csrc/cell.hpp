// Convex polytopes in one, two and three dimensions: a segment, a polygon, a polyhedron, and how a hyperplane cuts them.
//
// Every vertex, edge and facet carries the sum of the keys of the hyperplanes that vanish on it (`zero`). Together with the
// sum of the keys of the hyperplanes that a cell is above, it names that vertex or facet in the whole complex: all cells that
// share it come to the same number, from whichever side, and however many hyperplanes pass through it.
#pragma once

#include <cmath>
#include <cstdint>

#include "arena.hpp"
#include "hash.hpp"

namespace lmn {

inline uint64_t key_of_side(int32_t line) { return mixed(2 * uint64_t(uint32_t(line)) + 1); }   // of being above it
inline uint64_t key_of_zero(int32_t line) { return mixed(2 * uint64_t(uint32_t(line)) + 2); }   // of lying on it

// What a line adds to the `zero` of what lies on it, seen from a cell on one of its sides: the cell's own sum counts it as above.
inline uint64_t zero_key(int32_t line, bool above) { return key_of_zero(line) - (above ? key_of_side(line) : 0); }

struct Edge {
    int32_t vertex[2], face[2];
    uint64_t zero;
};

template <int D>
struct Cell {
    int n_vertices, n_facets;
    double* x[D];        // [vertex]
    double* slack;       // [vertex] how far it may be from where its lines meet: they may be nearly parallel
    uint64_t* zero;      // [vertex]
    uint64_t* facet;     // [facet] zero of it; of a polygon, facet i is the edge from vertex i to i + 1
    int32_t* label;      // [facet] the line that made it, or n_lines + its number among the domain's own
    int n_edges;         // three dimensions only
    Edge* edges;
};

template <int D>
Cell<D> empty_cell(Arena& arena, int n_vertices, int n_facets, int n_edges) {
    Cell<D> cell{};
    for (int d = 0; d < D; ++d) cell.x[d] = arena.take<double>(n_vertices);
    cell.slack = arena.take<double>(n_vertices);
    cell.zero = arena.take<uint64_t>(n_vertices);
    cell.facet = arena.take<uint64_t>(n_facets);
    cell.label = arena.take<int32_t>(n_facets);
    if constexpr (D == 3) cell.edges = arena.take<Edge>(n_edges);
    return cell;
}

template <int D>
Cell<D> copy_of(const Cell<D>& from, Arena& arena) {
    Cell<D> to = empty_cell<D>(arena, from.n_vertices, from.n_facets, from.n_edges);
    to.n_vertices = from.n_vertices;
    to.n_facets = from.n_facets;
    to.n_edges = from.n_edges;
    for (int d = 0; d < D; ++d) std::copy_n(from.x[d], from.n_vertices, to.x[d]);
    std::copy_n(from.slack, from.n_vertices, to.slack);
    std::copy_n(from.zero, from.n_vertices, to.zero);
    std::copy_n(from.facet, from.n_facets, to.facet);
    std::copy_n(from.label, from.n_facets, to.label);
    if constexpr (D == 3) std::copy_n(from.edges, from.n_edges, to.edges);
    return to;
}

// The cube [-1, 1]^D. Facet 2 d is x_d = -1, facet 2 d + 1 is x_d = 1; their lines are numbered from first_line on.
template <int D>
Cell<D> cube(Arena& arena, int32_t first_line) {
    constexpr int kVertices = 1 << D, kFacets = 2 * D;
    Cell<D> cell = empty_cell<D>(arena, kVertices, kFacets, 12);
    cell.n_vertices = kVertices;
    cell.n_facets = kFacets;
    const auto key = [&](int facet) { return key_of_zero(first_line + facet); };
    // In two dimensions the vertices go around; in three, bit d of a vertex's number says on which side of axis d it lies.
    constexpr int kAround[4] = {0, 1, 3, 2};
    for (int v = 0; v < kVertices; ++v) {
        const int corner = D == 2 ? kAround[v] : v;
        cell.zero[v] = 0;
        cell.slack[v] = 0;
        for (int d = 0; d < D; ++d) {
            const int side = corner >> d & 1;
            cell.x[d][v] = side ? 1.0 : -1.0;
            cell.zero[v] += key(2 * d + side);
        }
    }
    constexpr int kFacetAround[4] = {2, 1, 3, 0};  // y = -1, x = 1, y = 1, x = -1
    for (int f = 0; f < kFacets; ++f) {
        const int facet = D == 2 ? kFacetAround[f] : f;
        cell.facet[f] = key(facet);
        cell.label[f] = first_line + facet;
    }
    if constexpr (D == 3) {
        for (int axis = 0; axis < 3; ++axis)
            for (int v = 0; v < kVertices; ++v) {
                if (v >> axis & 1) continue;
                const int p = (axis + 1) % 3, q = (axis + 2) % 3;
                const int fp = 2 * p + (v >> p & 1), fq = 2 * q + (v >> q & 1);
                cell.edges[cell.n_edges++] = {{v, v | 1 << axis}, {fp, fq}, key(fp) + key(fq)};
            }
    }
    return cell;
}

// An affine function's sign at each vertex, zero within a tolerance and the vertex's slack.
template <int D>
int count_signs(const Cell<D>& cell, const double* a, double c, double tolerance, double* value, int8_t* sign) {
    int seen = 0;  // bit 0: below, 1: on, 2: above
    double slope = 0;
    for (int d = 0; d < D; ++d) slope += std::abs(a[d]);
    for (int v = 0; v < cell.n_vertices; ++v) {
        double z = c;
        for (int d = 0; d < D; ++d) z += a[d] * cell.x[d][v];
        value[v] = z;
        const double near = tolerance + slope * cell.slack[v];
        sign[v] = int8_t(z > near ? 1 : z < -near ? -1 : 0);
        seen |= 1 << (sign[v] + 1);
    }
    return seen;
}

// A line that does not cut the cell vanishes at some of its vertices: note it at these, and at the edges and facets between.
template <int D>
void touch(const Cell<D>& cell, const int8_t* sign, uint64_t key) {
    for (int v = 0; v < cell.n_vertices; ++v)
        if (sign[v] == 0) cell.zero[v] += key;
    if constexpr (D == 1) {
        for (int f = 0; f < 2; ++f)
            if (sign[f] == 0) cell.facet[f] += key;
    } else if constexpr (D == 2) {
        for (int v = 0; v < cell.n_vertices; ++v)
            if (sign[v] == 0 && sign[v + 1 < cell.n_vertices ? v + 1 : 0] == 0) cell.facet[v] += key;
    } else {
        uint64_t off[4] = {};  // bit f: a vertex of facet f is off the line; past 256 facets, one by one
        const bool many = cell.n_facets > 256;
        for (int e = 0; e < cell.n_edges; ++e) {
            Edge& edge = cell.edges[e];
            const bool on = sign[edge.vertex[0]] == 0 && sign[edge.vertex[1]] == 0;
            if (on) edge.zero += key;
            if (!on && !many)
                for (const int f : edge.face) off[f / 64] |= uint64_t(1) << f % 64;
        }
        for (int f = 0; f < cell.n_facets; ++f) {
            bool on = !many && !(off[f / 64] >> f % 64 & 1);
            if (many) {
                on = true;
                for (int e = 0; e < cell.n_edges; ++e) {
                    const Edge& edge = cell.edges[e];
                    if (edge.face[0] == f || edge.face[1] == f) on &= sign[edge.vertex[0]] == 0 && sign[edge.vertex[1]] == 0;
                }
            }
            if (on) cell.facet[f] += key;
        }
    }
}

// What is noted where a cell is cut: the number of what cuts it, what that adds to `zero`, seen from below and from above, and
// how wrong its values at the vertices may be.
struct Cut {
    int32_t label;
    uint64_t zero[2];
    double error;
};

// The share of a line's tolerance that rounding takes up.
inline constexpr double kRounding = 0.01;

inline Cut cut_by(int32_t line, double tolerance) {
    return {line, {zero_key(line, false), zero_key(line, true)}, kRounding * tolerance};
}

template <int D>
struct Halves {
    Cell<D> above, below;
};

// Where the line crosses from a vertex with one strict sign to one with the other.
template <int D>
inline void cross(const Cell<D>& from, int p, int q, const double* value, const Cut& by, const Cell<D>& to, int v) {
    const double t = value[p] / (value[p] - value[q]);
    double length = 0;
    for (int d = 0; d < D; ++d) {
        const double along = from.x[d][q] - from.x[d][p];
        to.x[d][v] = from.x[d][p] + t * along;
        length += std::abs(along);
    }
    to.slack[v] = from.slack[p] + t * (from.slack[q] - from.slack[p]) + length * by.error / std::abs(value[p] - value[q]);
}

template <int D>
inline void copy_vertex(const Cell<D>& from, int p, const Cell<D>& to, int v) {
    for (int d = 0; d < D; ++d) to.x[d][v] = from.x[d][p];
    to.slack[v] = from.slack[p];
}

inline Halves<1> split(const Cell<1>& cell, const double* value, const int8_t* sign, const Cut& by, Arena& arena) {
    Halves<1> halves;
    for (const bool above : {true, false}) {
        Cell<1>& half = above ? halves.above : halves.below;
        half = empty_cell<1>(arena, 2, 2, 0);
        half.n_vertices = half.n_facets = 2;
        const int kept = (sign[0] > 0) == above ? 0 : 1;  // which of the two ends
        for (int end = 0; end < 2; ++end) {
            if (end == kept) {
                copy_vertex(cell, end, half, end);
                half.zero[end] = cell.zero[end];
                half.facet[end] = cell.facet[end];
                half.label[end] = cell.label[end];
            } else {
                cross(cell, 0, 1, value, by, half, end);
                half.zero[end] = half.facet[end] = by.zero[above];
                half.label[end] = by.label;
            }
        }
    }
    return halves;
}

inline Halves<2> split(const Cell<2>& cell, const double* value, const int8_t* sign, const Cut& by, Arena& arena) {
    Halves<2> halves;
    const int n = cell.n_vertices;
    for (const bool above : {true, false}) {
        Cell<2>& half = above ? halves.above : halves.below;
        half = empty_cell<2>(arena, n + 1, n + 1, 0);
        const uint64_t key = by.zero[above];
        const int8_t mine = above ? 1 : -1;
        int m = 0;
        const auto put = [&](uint64_t zero, uint64_t facet, int32_t label) {
            half.zero[m] = zero;
            half.facet[m] = facet;
            half.label[m] = label;
            ++m;
        };
        // Around the polygon: what is on this side stays; where the line leaves it, the cut becomes the next edge.
        for (int v = 0; v < n; ++v) {
            const int w = v + 1 < n ? v + 1 : 0;
            if (sign[v] == mine || sign[v] == 0) {
                copy_vertex(cell, v, half, m);
                const bool leaves = sign[v] == 0 && sign[w] == -mine;
                const bool along = sign[v] == 0 && sign[w] == 0;
                put(cell.zero[v] + (sign[v] == 0 ? key : 0), leaves ? key : cell.facet[v] + (along ? key : 0),
                    leaves ? by.label : cell.label[v]);
            }
            if (sign[v] * sign[w] < 0) {
                if (sign[v] > 0)
                    cross(cell, v, w, value, by, half, m);
                else
                    cross(cell, w, v, value, by, half, m);  // the same arithmetic from either side
                const bool leaves = sign[v] == mine;
                put(cell.facet[v] + key, leaves ? key : cell.facet[v], leaves ? by.label : cell.label[v]);
            }
        }
        half.n_vertices = half.n_facets = m;
    }
    return halves;
}

inline Halves<3> split(const Cell<3>& cell, const double* value, const int8_t* sign, const Cut& by, Arena& arena) {
    Halves<3> halves;
    const int n_vertices = cell.n_vertices, n_edges = cell.n_edges, n_facets = cell.n_facets;
    int32_t* vertex_to = arena.take<int32_t>(n_vertices);
    int32_t* facet_to = arena.take<int32_t>(n_facets);
    int32_t* ends = arena.take<int32_t>(2 * int64_t(n_facets));  // of the cut through a facet, as vertices of the half
    bool* off = arena.take<bool>(n_facets);                      // a vertex of it is strictly on this side
    constexpr int32_t kHasEdge = -2;                             // in `ends`: the facet has its edge with the cut already
    for (const bool above : {true, false}) {
        Cell<3>& half = above ? halves.above : halves.below;
        half = empty_cell<3>(arena, n_vertices + n_edges, n_facets + 1, n_edges + n_facets);
        const uint64_t key = by.zero[above];
        const int8_t mine = above ? 1 : -1;
        int m = 0;
        for (int v = 0; v < n_vertices; ++v) {
            vertex_to[v] = -1;
            if (sign[v] == -mine) continue;
            vertex_to[v] = m;
            copy_vertex(cell, v, half, m);
            half.zero[m++] = cell.zero[v] + (sign[v] == 0 ? key : 0);
        }
        std::fill_n(off, n_facets, false);
        std::fill_n(ends, 2 * n_facets, -1);
        for (int e = 0; e < n_edges; ++e)
            for (const int v : cell.edges[e].vertex)
                if (sign[v] == mine) off[cell.edges[e].face[0]] = off[cell.edges[e].face[1]] = true;
        int facets = 0;
        for (int f = 0; f < n_facets; ++f) {
            facet_to[f] = -1;
            if (!off[f]) continue;
            half.facet[facets] = cell.facet[f];
            half.label[facets] = cell.label[f];
            facet_to[f] = facets++;
        }
        const int cut = facets++;
        half.facet[cut] = key;
        half.label[cut] = by.label;
        const auto end_of_cut = [&](int f, int v) {
            if (ends[2 * f] == kHasEdge) return;
            if (ends[2 * f] < 0)
                ends[2 * f] = v;
            else if (ends[2 * f] != v && ends[2 * f + 1] < 0)
                ends[2 * f + 1] = v;
        };
        int edges = 0;
        for (int e = 0; e < n_edges; ++e) {
            const Edge& edge = cell.edges[e];
            const int p = edge.vertex[0], q = edge.vertex[1];
            const int f = edge.face[0], g = edge.face[1];
            if (sign[p] * sign[q] < 0) {
                const int above_end = sign[p] > 0 ? p : q;
                cross(cell, above_end, above_end == p ? q : p, value, by, half, m);  // the same arithmetic from either side
                half.zero[m] = edge.zero + key;
                const int kept = sign[p] == mine ? p : q;
                half.edges[edges++] = {{vertex_to[kept], m}, {facet_to[f], facet_to[g]}, edge.zero};
                end_of_cut(f, m);
                end_of_cut(g, m);
                ++m;
            } else if (sign[p] == mine || sign[q] == mine) {
                half.edges[edges++] = {{vertex_to[p], vertex_to[q]}, {facet_to[f], facet_to[g]}, edge.zero};
                for (const int v : edge.vertex)
                    if (sign[v] == 0) {
                        end_of_cut(f, vertex_to[v]);
                        end_of_cut(g, vertex_to[v]);
                    }
            } else if (sign[p] == 0 && sign[q] == 0 && (facet_to[f] >= 0) != (facet_to[g] >= 0)) {
                // The line runs along this edge: one of its facets stays, the cut takes the place of the other.
                const int stays = facet_to[f] >= 0 ? f : g;
                half.edges[edges++] = {{vertex_to[p], vertex_to[q]}, {facet_to[stays], cut}, edge.zero + key};
                ends[2 * stays] = ends[2 * stays + 1] = kHasEdge;
            }
        }
        for (int f = 0; f < n_facets; ++f)
            if (off[f] && ends[2 * f] >= 0 && ends[2 * f + 1] >= 0)
                half.edges[edges++] = {{ends[2 * f], ends[2 * f + 1]}, {facet_to[f], cut}, cell.facet[f] + key};
        half.n_vertices = m;
        half.n_facets = facets;
        half.n_edges = edges;
    }
    return halves;
}

// Length, area or volume.
inline double measure(const Cell<1>& cell) { return cell.x[0][1] - cell.x[0][0]; }

inline double measure(const Cell<2>& cell) {
    const double *x = cell.x[0], *y = cell.x[1];
    double twice = 0;
    for (int v = 2; v < cell.n_vertices; ++v)
        twice += (x[v - 1] - x[0]) * (y[v] - y[0]) - (x[v] - x[0]) * (y[v - 1] - y[0]);
    return twice / 2;
}

inline double measure(const Cell<3>& cell) {
    // Tetrahedra from vertex 0 over fans of the facets: of each facet, from one of its vertices.
    const double* const* x = cell.x;
    double six = 0;
    int32_t apex[256];
    const bool few = cell.n_facets <= 256;
    const auto apex_of = [&](int f) {
        for (int e = 0; e < cell.n_edges; ++e)
            if (cell.edges[e].face[0] == f || cell.edges[e].face[1] == f) return cell.edges[e].vertex[0];
        return 0;
    };
    if (few)
        for (int e = cell.n_edges; e-- > 0;)
            for (const int f : cell.edges[e].face) apex[f] = cell.edges[e].vertex[0];
    for (int e = 0; e < cell.n_edges; ++e) {
        const Edge& edge = cell.edges[e];
        for (const int f : edge.face) {
            const int v[3] = {few ? apex[f] : apex_of(f), edge.vertex[0], edge.vertex[1]};
            double r[3][3];
            for (int k = 0; k < 3; ++k)
                for (int d = 0; d < 3; ++d) r[k][d] = x[d][v[k]] - x[d][0];
            six += std::abs(r[0][0] * (r[1][1] * r[2][2] - r[1][2] * r[2][1]) - r[0][1] * (r[1][0] * r[2][2] - r[1][2] * r[2][0]) +
                            r[0][2] * (r[1][0] * r[2][1] - r[1][1] * r[2][0]));
        }
    }
    return six / 6;
}

}  // namespace lmn
