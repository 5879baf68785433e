#include "cells.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>

#include "parallel.hpp"
#include "walk.hpp"

namespace lmn {
namespace {

using namespace subdivision;

constexpr int64_t kCellsATask = 16;  // a fixed number, so that results don't depend on the threads

template <int D>
void put(Cells& to, const Cell<D>& cell, uint64_t hash) {
    for (int d = 0; d < D; ++d) to.x.insert(to.x.end(), cell.x[d], cell.x[d] + cell.n_vertices);
    to.slack.insert(to.slack.end(), cell.slack, cell.slack + cell.n_vertices);
    to.zero.insert(to.zero.end(), cell.zero, cell.zero + cell.n_vertices);
    to.facet.insert(to.facet.end(), cell.facet, cell.facet + cell.n_facets);
    to.label.insert(to.label.end(), cell.label, cell.label + cell.n_facets);
    if constexpr (D == 3) to.edge.insert(to.edge.end(), cell.edges, cell.edges + cell.n_edges);
    to.vertex_start.push_back(int64_t(to.zero.size()));
    to.facet_start.push_back(int64_t(to.facet.size()));
    to.edge_start.push_back(int64_t(to.edge.size()));
    to.hash.push_back(hash);
}

template <int D>
Cell<D> taken(const Cells& from, int64_t i, Arena& arena) {
    const int64_t v = from.vertex_start[i], f = from.facet_start[i], e = from.edge_start[i];
    const int n_vertices = int(from.vertex_start[i + 1] - v), n_facets = int(from.facet_start[i + 1] - f);
    const int n_edges = int(from.edge_start[i + 1] - e);
    Cell<D> cell = empty_cell<D>(arena, n_vertices, n_facets, n_edges);
    cell.n_vertices = n_vertices;
    cell.n_facets = n_facets;
    cell.n_edges = n_edges;
    for (int d = 0; d < D; ++d) std::copy_n(from.x.data() + D * v + d * n_vertices, n_vertices, cell.x[d]);
    std::copy_n(from.slack.data() + v, n_vertices, cell.slack);
    std::copy_n(from.zero.data() + v, n_vertices, cell.zero);
    std::copy_n(from.facet.data() + f, n_facets, cell.facet);
    std::copy_n(from.label.data() + f, n_facets, cell.label);
    if constexpr (D == 3) std::copy_n(from.edge.data() + e, n_edges, cell.edges);
    return cell;
}

void append_starts(std::vector<int64_t>& to, const std::vector<int64_t>& from, int64_t first, int64_t last) {
    const int64_t shift = to.back() - from[first];
    for (int64_t i = first; i < last; ++i) to.push_back(from[i + 1] + shift);
}

void append(Cells& to, const Cells& from, int64_t first, int64_t last) {
    const auto join = [&](auto& into, const auto& column, const std::vector<int64_t>& start, int64_t width = 1) {
        into.insert(into.end(), column.begin() + width * start[first], column.begin() + width * start[last]);
    };
    join(to.x, from.x, from.vertex_start, from.dimension);
    join(to.slack, from.slack, from.vertex_start);
    join(to.zero, from.zero, from.vertex_start);
    join(to.facet, from.facet, from.facet_start);
    join(to.label, from.label, from.facet_start);
    join(to.edge, from.edge, from.edge_start);
    to.hash.insert(to.hash.end(), from.hash.begin() + first, from.hash.begin() + last);
    append_starts(to.vertex_start, from.vertex_start, first, last);
    append_starts(to.facet_start, from.facet_start, first, last);
    append_starts(to.edge_start, from.edge_start, first, last);
}

CutCells empty_like(const Cells& cells, int64_t n_words) {
    CutCells out;
    out.cells.dimension = cells.dimension;
    out.n_words = n_words;
    return out;
}

int64_t shifted(int64_t what, int64_t cuts, int64_t cells) { return what >= 0 ? what + cuts : what - cells; }

void append(CutCells& to, const CutCells& from) {
    const int64_t cuts = to.tree.size(), cells = to.cells.size();
    append(to.cells, from.cells, 0, from.cells.size());
    subdivision::append(to.parent, from.parent);
    subdivision::append(to.pattern, from.pattern);
    subdivision::append(to.tree.cut, from.tree.cut);
    for (const int64_t child : from.tree.child) to.tree.child.push_back(shifted(child, cuts, cells));
    for (const int64_t root : from.root) to.root.push_back(shifted(root, cuts, cells));
}

// How many cells there are, in the view of all threads, and whether that is enough.
struct Limit {
    int64_t most;
    const Poll& poll;
    std::atomic<int64_t> count{0};
    std::atomic<bool> stop{false};

    bool enough(int64_t more, bool polls) {
        if ((polls && poll()) || (count += more) > most) stop = true;
        return stop;
    }
};

// Cells cut some at a time by whichever thread comes to them: cutter(out, arena, told) gives what cuts them one by one, and
// tells of what it found, as often as it likes; if told so, it leaves the rest.
template <class Cutter>
CutCells cut_all(const Cells& cells, int64_t n_words, int64_t max_cells, int threads, const Poll& poll, Cutter cutter) {
    const int64_t n = cells.size(), n_tasks = (n + kCellsATask - 1) / kCellsATask;
    std::vector<CutCells> parts(n_tasks, empty_like(cells, n_words));
    std::vector<Arena> arenas(std::max(threads, 1));
    Limit limit{max_cells, poll};
    const auto work = [&](int64_t task, int worker) {
        CutCells& part = parts[task];
        auto cut = cutter(part, arenas[worker], [&limit, worker](int64_t more) { return limit.enough(more, worker == 0); });
        for (int64_t i = task * kCellsATask; i < std::min(n, (task + 1) * kCellsATask) && !limit.stop; ++i) {
            const Arena::Mark mark = arenas[worker].mark();
            part.root.push_back(cut(i));
            arenas[worker].release(mark);
        }
    };
    parallel_for(0, n_tasks, threads, work, [&] { limit.enough(0, true); });
    CutCells all = empty_like(cells, n_words);
    all.stopped = limit.stop;
    all.n_found = limit.count;
    if (all.stopped) return all;
    for (const CutCells& part : parts) append(all, part);
    return all;
}

// Lines of the first n units' maps on a cell, from their values at the cube's points.
template <int D>
Maps maps_of(const Units& units, int64_t cell, Arena& arena) {
    Maps maps = empty_maps<D>(arena, units.count);
    const double* origin = units.value + cell * (D + 1) * units.count;
    for (int64_t u = 0; u < padded(units.count); ++u) {
        const bool real = u < units.count;
        for (int d = 0; d < D; ++d) maps.a[d][u] = real ? origin[(d + 1) * units.count + u] - origin[u] : 0.0;
        maps.c[u] = real ? origin[u] : 0.0;
        maps.size[u] = real ? units.size[u] : 0.0;
    }
    return maps;
}

template <int D>
struct Kept {
    CutCells* out;
    int64_t parent = 0;

    int64_t add(const State<D>& state, const Maps&) {
        put(out->cells, state.cell, state.hash);
        out->parent.push_back(parent);
        out->pattern.insert(out->pattern.end(), state.pattern, state.pattern + out->n_words);
        return out->cells.size() - 1;
    }
};

using Told = std::function<bool(int64_t)>;

template <int D>
class LineCutter {
public:
    LineCutter(const Cells& cells, const Units& units, const Network& network, CutCells& out, Arena& arena, Told told)
        : cells_(cells), units_(units), out_(out), after_layer_(std::make_unique<std::vector<int64_t>>()),
          walk_(network, Kept<D>{&out}, out.tree, *after_layer_, arena) {
        walk_.enough = std::move(told);
    }

    int64_t cut(int64_t i) {
        Arena& arena = walk_.arena;
        walk_.descend = [this](State<D>& child) { walk_.decide(child); };
        walk_.found.parent = i;
        State<D> state{-1, taken<D>(cells_, i, arena), {}, maps_of<D>(units_, i, arena), cells_.hash[i], nullptr, -1, 0};
        state.pattern = arena.template take<uint64_t>(out_.n_words);
        std::fill_n(state.pattern, out_.n_words, 0);
        const int64_t cuts = out_.tree.size();
        walk_.walk(state);
        return out_.tree.size() > cuts ? cuts : ~(out_.cells.size() - 1);
    }

private:
    const Cells& cells_;
    const Units& units_;
    CutCells& out_;
    std::unique_ptr<std::vector<int64_t>> after_layer_;
    Walk<D, Kept<D>> walk_;
};

template <int D>
CutCells by_lines(const Cells& cells, const Units& units, const UnitLines& lines, int64_t max_cells, int threads, const Poll& poll) {
    const std::vector<double> zeros(lines.count, 0.0);  // nothing is composed here
    const double* none = zeros.data();
    PieceChain chain{D, units.count, nullptr, nullptr, nullptr, {}, units.relative_tolerance};
    chain.layers.push_back({units.count, lines.count, 0, lines.unit, lines.breakpoint, none, none, none, none, none, none});
    const Network network = prepared(chain, lines.first);
    return cut_all(cells, network.n_words, max_cells, threads, poll, [&](CutCells& out, Arena& arena, Told told) {
        return [cutter = LineCutter<D>(cells, units, network, out, arena, std::move(told))](int64_t i) mutable { return cutter.cut(i); };
    });
}

// The parts of one cell in which each window has one largest member.
template <int D>
class WindowCutter {
public:
    WindowCutter(const UnitWindows& windows, const Maps& maps, double relative_tolerance, int64_t parent, CutCells& out, Arena& arena,
                 const Told& told)
        : windows_(windows), maps_(maps), relative_(relative_tolerance), parent_(parent), out_(out), arena_(arena), told_(told) {}

    // Returns the first cut, or ~cell.
    int64_t cut(Cell<D>& cell, uint64_t hash, const uint64_t* pattern, const int64_t* open, int64_t n_open) {
        uint64_t* bits = copied(pattern, out_.n_words, arena_);
        int64_t* rest = arena_.take<int64_t>(n_open);
        int64_t n_rest = 0;
        for (int64_t k = 0; k < n_open; ++k) {
            const int64_t winner = alone(cell, open[k]);
            if (winner >= 0)
                settle(cell, open[k], winner, hash, bits);
            else
                rest[n_rest++] = open[k];
        }
        while (n_rest > 0) {
            const int64_t window = rest[--n_rest];
            std::vector<Part> parts = parts_of(cell, window);
            if (parts.size() == 1) {  // the others are slivers
                settle(cell, window, parts[0].member, hash, bits);
                continue;
            }
            return branched(window, parts, hash, bits, rest, n_rest);
        }
        stopped_ |= told_(1);
        put(out_.cells, cell, hash);
        out_.parent.push_back(parent_);
        out_.pattern.insert(out_.pattern.end(), bits, bits + out_.n_words);
        return ~(out_.cells.size() - 1);
    }

private:
    struct Part {
        int64_t member;
        Cell<D> cell;
    };

    int64_t unit(int64_t window, int64_t member) const { return windows_.member[window * windows_.width + member]; }
    uint64_t key(int64_t window, int64_t member) const { return key_of_side(number(window, member)); }
    int32_t number(int64_t window, int64_t member) const { return windows_.first + int32_t(window * windows_.width + member); }

    double value(int64_t u, const Cell<D>& cell, int v) const {
        double z = maps_.c[u];
        for (int d = 0; d < D; ++d) z += maps_.a[d][u] * cell.x[d][v];
        return windows_.sign * z;
    }

    // How much larger one member is than another, as an affine function, and what is zero of it.
    double difference(int64_t u, int64_t w, double* a, double* c) const {
        double terms = maps_.size[u] + maps_.size[w];
        for (int d = 0; d < D; ++d) {
            a[d] = windows_.sign * (maps_.a[d][u] - maps_.a[d][w]);
            terms += std::abs(maps_.a[d][u]) + std::abs(maps_.a[d][w]);
        }
        *c = windows_.sign * (maps_.c[u] - maps_.c[w]);
        return relative_ * (terms + std::abs(maps_.c[u]) + std::abs(maps_.c[w]));
    }

    // The signs of a member less another at a cell's vertices: bit 0: below somewhere, 1: on, 2: above.
    int compare(const Cell<D>& cell, int64_t u, int64_t w, double* value, int8_t* sign, double* tolerance = nullptr) const {
        double a[D], c;
        const double near = difference(u, w, a, &c);
        if (tolerance) *tolerance = near;
        return count_signs(cell, a, c, near, value, sign);
    }

    static constexpr int kBelow = 1, kOn = 2, kAbove = 4;

    // The member that is the largest on all of a cell, the first of equal ones; -1 where there is none.
    int64_t alone(const Cell<D>& cell, int64_t window) {
        int64_t best = -1;
        double largest = 0;
        for (int64_t m = 0; m < windows_.width; ++m) {
            if (unit(window, m) < 0) continue;
            double sum = 0;
            for (int v = 0; v < cell.n_vertices; ++v) sum += value(unit(window, m), cell, v);
            if (best < 0 || sum > largest) {
                best = m;
                largest = sum;
            }
        }
        const Arena::Mark mark = arena_.mark();
        double* z = arena_.take<double>(cell.n_vertices);
        int8_t* sign = arena_.take<int8_t>(cell.n_vertices);
        int64_t first = best;
        for (int64_t m = 0; m < windows_.width && first >= 0; ++m) {
            if (unit(window, m) < 0 || m == best) continue;
            const int seen = compare(cell, unit(window, m), unit(window, best), z, sign);
            if (seen & kAbove)
                first = -1;
            else if (seen == kOn)
                first = std::min(first, m);
        }
        arena_.release(mark);
        return first;
    }

    void settle(Cell<D>& cell, int64_t window, int64_t winner, uint64_t& hash, uint64_t* bits) {
        const Arena::Mark mark = arena_.mark();
        double* z = arena_.take<double>(cell.n_vertices);
        int8_t* sign = arena_.take<int8_t>(cell.n_vertices);
        for (int64_t m = 0; m < windows_.width; ++m) {
            if (unit(window, m) < 0 || m == winner) continue;
            if (compare(cell, unit(window, winner), unit(window, m), z, sign) & kOn) touch(cell, sign, key(window, m));
        }
        arena_.release(mark);
        decide(window, winner, hash, bits);
    }

    void decide(int64_t window, int64_t winner, uint64_t& hash, uint64_t* bits) const {
        hash += key(window, winner);
        for (int b = 0; b < windows_.bits; ++b) {
            const int64_t bit = window * windows_.bits + b;
            bits[bit / 64] |= uint64_t(winner >> b & 1) << (bit % 64);
        }
    }

    // A vertex or facet on which members are equal to the largest one carries their keys, and a cell that of its largest: the
    // sum is the same from all the cells around it.
    std::vector<Part> parts_of(const Cell<D>& cell, int64_t window) {
        std::vector<Part> parts;
        int64_t best = -1;
        double largest = 0;
        for (int64_t m = 0; m < windows_.width; ++m) {
            if (unit(window, m) < 0) continue;
            Cell<D> part = copy_of(cell, arena_);
            bool empty = false;
            for (int64_t other = 0; other < windows_.width && !empty; ++other) {
                if (unit(window, other) < 0 || other == m) continue;
                double* z = arena_.take<double>(part.n_vertices);
                int8_t* sign = arena_.take<int8_t>(part.n_vertices);
                double tolerance;
                const int seen = compare(part, unit(window, m), unit(window, other), z, sign, &tolerance);
                empty = !(seen & kAbove) && !(seen == kOn && m < other);
                if (empty) break;
                if (seen & kBelow)
                    part = split(part, z, sign, {number(window, other), {0, key(window, other)}, kRounding * tolerance}, arena_).above;
                else if (seen & kOn)
                    touch(part, sign, key(window, other));
            }
            if (!empty) parts.push_back({m, part});
            double sum = 0;
            for (int v = 0; v < cell.n_vertices; ++v) sum += value(unit(window, m), cell, v);
            if (best < 0 || sum > largest) {
                best = m;
                largest = sum;
            }
        }
        if (parts.empty()) parts.push_back({best, cell});
        return parts;
    }

    // A tree for which part a point is in: the largest member so far against the next one.
    int64_t branched(int64_t window, std::vector<Part>& parts, uint64_t hash, const uint64_t* bits, const int64_t* open, int64_t n_open) {
        const int64_t n = int64_t(parts.size()), first = out_.tree.size();
        const auto node = [&](int64_t best, int64_t next) { return first + best * n - best * (best + 1) / 2 + next - best - 1; };
        for (int64_t best = 0; best < n; ++best)
            for (int64_t next = best + 1; next < n; ++next) {
                double a[D], c;
                difference(unit(window, parts[best].member), unit(window, parts[next].member), a, &c);
                out_.tree.cut.insert(out_.tree.cut.end(), a, a + D);
                out_.tree.cut.push_back(c);
                out_.tree.child.insert(out_.tree.child.end(), {0, 0});
            }
        for (int64_t k = 0; k < n && !stopped_; ++k) {
            uint64_t part_hash = hash;
            uint64_t* part_bits = copied(bits, out_.n_words, arena_);
            decide(window, parts[k].member, part_hash, part_bits);
            const int64_t root = cut(parts[k].cell, part_hash, part_bits, open, n_open);
            if (k < n - 1) {
                out_.tree.attach(node(k, n - 1), 0, root);
            } else {
                for (int64_t best = 0; best < n - 1; ++best) out_.tree.attach(node(best, n - 1), 1, root);
            }
        }
        for (int64_t best = 0; best < n; ++best)
            for (int64_t next = best + 1; next < n - 1; ++next) {
                out_.tree.attach(node(best, next), 0, node(best, next + 1));
                out_.tree.attach(node(best, next), 1, node(next, next + 1));
            }
        return first;
    }

    const UnitWindows& windows_;
    const Maps& maps_;
    const double relative_;
    const int64_t parent_;
    CutCells& out_;
    Arena& arena_;
    const Told& told_;
    bool stopped_ = false;
};

template <int D>
CutCells by_windows(const Cells& cells, const Units& units, const UnitWindows& windows, int64_t max_cells, int threads,
                    const Poll& poll) {
    const int64_t n_words = (windows.count * windows.bits + 63) / 64;
    std::vector<int64_t> all(windows.count);
    std::iota(all.begin(), all.end(), int64_t(0));
    const std::vector<uint64_t> blank(n_words, 0);
    return cut_all(cells, n_words, max_cells, threads, poll, [&](CutCells& out, Arena& arena, Told told) {
        return [&, told = std::move(told)](int64_t i) {
            const Maps maps = maps_of<D>(units, i, arena);
            Cell<D> cell = taken<D>(cells, i, arena);
            WindowCutter<D> cutter(windows, maps, units.relative_tolerance, i, out, arena, told);
            return cutter.cut(cell, cells.hash[i], blank.data(), all.data(), windows.count);
        };
    });
}

template <int D>
Subdivision described_in(const Cells& cells) {
    Subdivision out;
    Arena arena;
    for (int64_t i = 0; i < cells.size(); ++i) {
        const Arena::Mark mark = arena.mark();
        add_cell(out, taken<D>(cells, i, arena), cells.hash[i], true);
        arena.release(mark);
    }
    return out;
}

template <int D>
Cells cube_in(int32_t first_line) {
    Arena arena;
    Cells cells;
    cells.dimension = D;
    put(cells, cube<D>(arena, first_line), 0);
    return cells;
}

}  // namespace

Cells cube_of(int dimension, int32_t first_line) {
    switch (dimension) {
        case 1: return cube_in<1>(first_line);
        case 2: return cube_in<2>(first_line);
        default: return cube_in<3>(first_line);
    }
}

Cells part_of(const Cells& cells, int64_t first, int64_t last) {
    Cells part;
    part.dimension = cells.dimension;
    append(part, cells, first, last);
    return part;
}

Subdivision described(const Cells& cells) {
    switch (cells.dimension) {
        case 1: return described_in<1>(cells);
        case 2: return described_in<2>(cells);
        default: return described_in<3>(cells);
    }
}

CutCells cut_by_lines(const Cells& cells, const Units& units, const UnitLines& lines, int64_t max_cells, int threads, const Poll& poll) {
    switch (cells.dimension) {
        case 1: return by_lines<1>(cells, units, lines, max_cells, threads, poll);
        case 2: return by_lines<2>(cells, units, lines, max_cells, threads, poll);
        default: return by_lines<3>(cells, units, lines, max_cells, threads, poll);
    }
}

CutCells cut_by_windows(const Cells& cells, const Units& units, const UnitWindows& windows, int64_t max_cells, int threads, const Poll& poll) {
    switch (cells.dimension) {
        case 1: return by_windows<1>(cells, units, windows, max_cells, threads, poll);
        case 2: return by_windows<2>(cells, units, windows, max_cells, threads, poll);
        default: return by_windows<3>(cells, units, windows, max_cells, threads, poll);
    }
}

}  // namespace lmn
