// One thread's way down the tree of cuts: layers, lines, cells.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "cell.hpp"
#include "subdivide.hpp"

// A namespace of its own: the connectivity kernel has layers too.
namespace lmn::subdivision {

inline constexpr int64_t kRegionsABeat = 256;  // between two looks at the common count

// A layer as the walk reads it.
struct Layer {
    const PieceLayer* given;
    int64_t first_line, first_word, n_words;
    bool plain;                           // line i is unit i passing 0
    bool silent_below;                    // no share below a line
    Aligned<uint64_t> key;                // [line] padded with zeros
    Aligned<double> weight;               // [unit][next unit, padded]: the columns of the affine map after it
};

struct Network {
    const PieceChain* given;
    std::vector<Layer> layers;
    const SubdivideKernels* kernels;
    int64_t n_lines = 0, n_words = 0, n_out = 0;
};

// Lines are numbered from the given one on.
inline Network prepared(const PieceChain& chain, int64_t first_line = 0) {
    Network network{&chain, {}, &subdivide_kernels(), first_line, 0, chain.n_first};
    for (const PieceLayer& given : chain.layers) {
        Layer layer{&given, network.n_lines, network.n_words, (given.n_lines + 63) / 64, given.n_lines == given.n_units, true, {}, {}};
        layer.key = aligned<uint64_t>(padded(given.n_lines));
        std::fill_n(layer.key.get(), padded(given.n_lines), uint64_t(0));
        for (int64_t i = 0; i < given.n_lines; ++i) {
            layer.key[i] = key_of_side(int32_t(network.n_lines + i));
            layer.plain &= given.unit[i] == i && given.breakpoint[i] == 0;
            layer.silent_below &= given.slope_below[i] == 0 && given.offset_below[i] == 0;
        }
        const int64_t width = padded(given.n_next);
        layer.weight = aligned<double>(given.n_units * width);
        std::fill_n(layer.weight.get(), given.n_units * width, 0.0);
        for (int64_t u = 0; u < given.n_next; ++u)
            for (int64_t k = 0; k < given.n_units; ++k) layer.weight[k * width + u] = given.weight[u * given.n_units + k];
        network.n_lines += given.n_lines;
        network.n_words += layer.n_words;
        network.n_out = given.n_next;
        network.layers.push_back(std::move(layer));
    }
    return network;
}

template <int D>
Maps empty_maps(Arena& arena, int64_t n) {
    Maps maps{};
    for (int d = 0; d < D; ++d) maps.a[d] = arena.take<double>(padded(n));
    maps.c = arena.take<double>(padded(n));
    maps.size = arena.take<double>(padded(n));
    return maps;
}

template <int D>
Maps copy_of(const Maps& from, int64_t n, Arena& arena) {
    Maps to = empty_maps<D>(arena, n);
    for (int d = 0; d < D; ++d) std::copy_n(from.a[d], padded(n), to.a[d]);
    std::copy_n(from.c, padded(n), to.c);
    std::copy_n(from.size, padded(n), to.size);
    return to;
}

// The lines of one layer that still cut a cell: their maps, tolerances and numbers within the layer.
struct Lines {
    int64_t n;
    Maps maps;
    double* tolerance;
    int32_t* index;
};

// A cell on the way through a layer.
template <int D>
struct State {
    int layer;
    Cell<D> cell;
    Lines lines;
    Maps next;         // of the next layer's units or of the outputs, as far as the layer's lines are decided
    uint64_t hash;
    uint64_t* pattern;  // [word], complete up to the layer before and where the layer's lines are decided
    int64_t parent;     // the cut above it, or -1, and on which side of it
    int side;
};

template <class T>
T* copied(const T* from, int64_t n, Arena& arena) {
    if (!from) return nullptr;
    T* to = arena.take<T>(n);
    std::copy_n(from, n, to);
    return to;
}

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
    to.insert(to.end(), from.begin(), from.end());
}

// What is told of a region, but its pattern and its map.
template <int D>
void add_cell(Subdivision& out, const Cell<D>& cell, uint64_t hash, bool geometry) {
    ++out.n_regions;
    out.measure.push_back(measure(cell));
    for (int d = 0; d < D; ++d) {
        double sum = 0;
        for (int v = 0; v < cell.n_vertices; ++v) sum += cell.x[d][v];
        out.centre.push_back(sum / cell.n_vertices);
    }
    if (!geometry) return;
    out.n_vertices.push_back(cell.n_vertices);
    out.n_facets.push_back(cell.n_facets);
    for (int v = 0; v < cell.n_vertices; ++v) {
        for (int d = 0; d < D; ++d) out.vertex.push_back(cell.x[d][v]);
        out.vertex_id.push_back(mixed(hash + cell.zero[v]));
    }
    for (int f = 0; f < cell.n_facets; ++f) {
        out.facet_id.push_back(mixed(hash + cell.facet[f]));
        out.facet_line.push_back(cell.label[f]);
    }
    if constexpr (D == 3)
        for (int e = 0; e < cell.n_edges; ++e) out.edge_id.push_back(mixed(hash + cell.edges[e].zero));
}

// What is found of a cell in which all layers are affine: of an exact subdivision, a region.
template <int D>
struct Regions {
    bool geometry;
    int64_t n_words, n_out;
    Subdivision& out;

    int64_t add(const State<D>& state, const Maps& outputs) {
        out.pattern.insert(out.pattern.end(), state.pattern, state.pattern + n_words);
        for (int64_t k = 0; k < n_out; ++k) {
            for (int d = 0; d < D; ++d) out.map.push_back(outputs.a[d][k]);
            out.map.push_back(outputs.c[k]);
        }
        add_cell(out, state.cell, state.hash, geometry);
        return out.n_regions - 1;
    }
};

// `Found` takes what is found: add(state, maps of the outputs) returns its number, a leaf of the tree.
template <int D, class Found>
class Walk {
public:
    Walk(const Network& network, Found found, Branches& branches, std::vector<int64_t>& after_layer, Arena& scratch)
        : arena(scratch), found(found), network_(network), branches_(branches), after_layer_(after_layer) {
        after_layer_.resize(network.layers.size());
        row_.resize(kChunk * (D + 2));
        weight_.resize(kChunk);
    }

    Arena& arena;
    Found found;

    std::function<void(State<D>&)> descend;  // called with each child of a cut
    std::function<bool(int64_t)> enough;     // told how many more were found: whether to stop
    bool stopped = false;

    void walk(State<D>& state) {
        if (state.layer >= 0) {
            decide(state);
        } else {
            state.layer = 0;  // the root
            start_layer(state, state.next);
        }
        tell();
    }

    // Enter a layer, its units' maps on the cell given; past the last one, they are the outputs'.
    void start_layer(State<D>& state, const Maps units) {
        if (state.layer == int(network_.layers.size())) return finish(state, units);
        const Layer& layer = network_.layers[state.layer];
        const PieceLayer& given = *layer.given;
        state.next = empty_maps<D>(arena, given.n_next);
        for (int d = 0; d < D; ++d) std::fill_n(state.next.a[d], padded(given.n_next), 0.0);
        for (int64_t u = 0; u < padded(given.n_next); ++u) {
            state.next.c[u] = u < given.n_next ? given.bias[u] : 0.0;
            state.next.size[u] = std::abs(state.next.c[u]);
        }
        Lines lines{given.n_lines, units, arena.take<double>(padded(given.n_lines)), nullptr};
        if (!layer.plain) {
            lines.maps = empty_maps<D>(arena, given.n_lines);
            for (int64_t i = 0; i < given.n_lines; ++i) {
                const int32_t u = given.unit[i];
                for (int d = 0; d < D; ++d) lines.maps.a[d][i] = units.a[d][u];
                lines.maps.c[i] = units.c[u] - given.breakpoint[i];
                lines.maps.size[i] = units.size[u] + std::abs(given.breakpoint[i]);
            }
        }
        network_.kernels->tolerances(D, lines.n, lines.maps, network_.given->relative_tolerance, lines.tolerance);
        state.lines = lines;
        decide(state);
    }

    // Decide the lines that miss the cell; cut it by one of the others, or go on to the next layer.
    void decide(State<D>& state) {
        const Layer& layer = network_.layers[state.layer];
        const Lines& lines = state.lines;
        const int64_t n = lines.n, words = (n + 63) / 64;
        const Arena::Mark mark = arena.mark();
        double* low = arena.take<double>(padded(n));
        double* high = arena.take<double>(padded(n));
        uint64_t* above = arena.take<uint64_t>(words);
        uint64_t* cuts = arena.take<uint64_t>(words);
        uint64_t* touches = arena.take<uint64_t>(words);
        const uint64_t* key = layer.key.get();
        if (lines.index) {
            uint64_t* keys = arena.take<uint64_t>(padded(n));
            for (int64_t i = 0; i < padded(n); ++i) keys[i] = i < n ? layer.key[lines.index[i]] : 0;
            key = keys;
        }
        network_.kernels->ranges(D, n, lines.maps, state.cell.n_vertices, state.cell.x, low, high);
        state.hash += network_.kernels->decide(n, low, high, lines.tolerance, key, above, cuts, touches);
        for (int64_t w = 0; w < words; ++w)
            for (uint64_t bits = touches[w]; bits; bits &= bits - 1) {
                const int64_t i = w * 64 + std::countr_zero(bits);
                note_touch(state, i, above[w] >> (i % 64) & 1);
            }
        if (lines.index) {
            for (int64_t i = 0; i < n; ++i) set_bit(state, lines.index[i], above[i / 64] >> (i % 64) & 1);
        } else {
            std::copy_n(above, words, state.pattern + layer.first_word);
        }
        add_decided(state, low, high, above, cuts);

        int64_t kept = 0;
        for (int64_t w = 0; w < words; ++w) kept += std::popcount(cuts[w]);
        while (kept > 0) {
            const int64_t chosen = most_central(n, low, high, cuts);
            if (cut(state, chosen, largest(low, high, chosen), cuts, kept)) {
                arena.release(mark);
                return;
            }
            // On the verge of the tolerance: it does not cut by the vertices' slack, or by another way of summing.
            const bool is_above = high[chosen] > -low[chosen];
            note_touch(state, chosen, is_above);
            cuts[chosen / 64] &= ~(uint64_t(1) << (chosen % 64));
            --kept;
            settle(state, chosen, largest(low, high, chosen), is_above);
        }
        ++after_layer_[state.layer];
        ++state.layer;
        start_layer(state, state.next);
        arena.release(mark);
    }

private:
    static constexpr int64_t kChunk = 64;  // units whose shares are added together

    int32_t index_of(const Lines& lines, int64_t i) const { return lines.index ? lines.index[i] : int32_t(i); }

    void set_bit(State<D>& state, int32_t index, bool above) {
        uint64_t& word = state.pattern[network_.layers[state.layer].first_word + index / 64];
        const uint64_t bit = uint64_t(1) << (index % 64);
        word = above ? word | bit : word & ~bit;
    }

    void note_touch(State<D>& state, int64_t i, bool above) {
        const Lines& lines = state.lines;
        double a[D];
        for (int d = 0; d < D; ++d) a[d] = lines.maps.a[d][i];
        const Arena::Mark mark = arena.mark();
        double* value = arena.take<double>(state.cell.n_vertices);
        int8_t* sign = arena.take<int8_t>(state.cell.n_vertices);
        count_signs(state.cell, a, lines.maps.c[i], lines.tolerance[i], value, sign);
        const int32_t line = int32_t(network_.layers[state.layer].first_line) + index_of(lines, i);
        touch(state.cell, sign, zero_key(line, above));
        arena.release(mark);
    }

    static double largest(const double* low, const double* high, int64_t i) { return std::max(-low[i], high[i]); }

    // The share of a line in the next layer's maps, as weights and one row (a.., c, size); false where it has none. The line's
    // values over the cell are at most `size`, and where that is next to nothing they are the rounding error of their terms.
    bool share(const State<D>& state, int64_t i, double size, bool above, double* row, const double** weight) const {
        const Layer& layer = network_.layers[state.layer];
        const PieceLayer& given = *layer.given;
        const int32_t index = index_of(state.lines, i);
        const double slope = above ? given.slope_above[index] : given.slope_below[index];
        const double offset = above ? given.offset_above[index] : given.offset_below[index];
        if (slope == 0 && offset == 0) return false;
        const Maps& maps = state.lines.maps;
        for (int d = 0; d < D; ++d) row[d] = slope * maps.a[d][i];
        row[D] = slope * maps.c[i] + offset;
        row[D + 1] = std::abs(slope) * (size + kRounding * maps.size[i]) + std::abs(offset);
        *weight = layer.weight.get() + given.unit[index] * padded(given.n_next);
        return true;
    }

    void add_decided(State<D>& state, const double* low, const double* high, const uint64_t* above, const uint64_t* cuts) {
        const Layer& layer = network_.layers[state.layer];
        const int64_t n = state.lines.n;
        if (layer.given->n_next == 0) return;
        int64_t count = 0;
        const auto flush = [&] {
            network_.kernels->add(D, layer.given->n_next, count, weight_.data(), row_.data(), state.next);
            count = 0;
        };
        for (int64_t w = 0; w * 64 < n; ++w) {
            const uint64_t valid = n - w * 64 >= 64 ? ~uint64_t(0) : (uint64_t(1) << (n - w * 64)) - 1;
            for (uint64_t bits = layer.silent_below ? above[w] : ~cuts[w] & valid; bits; bits &= bits - 1) {
                const int64_t i = w * 64 + std::countr_zero(bits);
                count += share(state, i, largest(low, high, i), above[w] >> (i % 64) & 1, row_.data() + count * (D + 2),
                               weight_.data() + count);
                if (count == kChunk) flush();
            }
        }
        if (count) flush();
    }

    // One line decided, outside the vector loops.
    void settle(State<D>& state, int64_t i, double size, bool above) {
        const Layer& layer = network_.layers[state.layer];
        const int32_t index = index_of(state.lines, i);
        set_bit(state, index, above);
        if (above) state.hash += layer.key[index];
        if (share(state, i, size, above, row_.data(), weight_.data()))
            network_.kernels->add(D, layer.given->n_next, 1, weight_.data(), row_.data(), state.next);
    }

    static int64_t most_central(int64_t n, const double* low, const double* high, const uint64_t* cuts) {
        int64_t best = -1;
        double best_ratio = -1;
        for (int64_t w = 0; w * 64 < n; ++w)
            for (uint64_t bits = cuts[w]; bits; bits &= bits - 1) {
                const int64_t i = w * 64 + std::countr_zero(bits);
                const double ratio = std::min(high[i], -low[i]) / std::max(high[i], -low[i]);
                if (ratio > best_ratio) {
                    best = i;
                    best_ratio = ratio;
                }
            }
        return best;
    }

    // Cut a cell in two by a line and go down both; false where the line does not cut it after all.
    bool cut(State<D>& state, int64_t chosen, double size, const uint64_t* cuts, int64_t kept) {
        const Lines& lines = state.lines;
        const int32_t index = index_of(lines, chosen);
        double plane[D + 1];
        for (int d = 0; d < D; ++d) plane[d] = lines.maps.a[d][chosen];
        plane[D] = lines.maps.c[chosen];
        const Arena::Mark mark = arena.mark();
        double* value = arena.take<double>(state.cell.n_vertices);
        int8_t* sign = arena.take<int8_t>(state.cell.n_vertices);
        constexpr int kBelow = 1, kAbove = 4;
        const int seen = count_signs(state.cell, plane, plane[D], lines.tolerance[chosen], value, sign);
        if ((seen & kBelow) == 0 || (seen & kAbove) == 0) {
            arena.release(mark);
            return false;
        }
        const int32_t line = int32_t(network_.layers[state.layer].first_line) + index;
        const Halves<D> halves = split(state.cell, value, sign, cut_by(line, lines.tolerance[chosen]), arena);
        const int64_t node = branches_.size();
        branches_.cut.insert(branches_.cut.end(), plane, plane + D + 1);
        branches_.child.insert(branches_.child.end(), {0, 0});
        branches_.attach(state.parent, state.side, node);

        Lines rest = without(lines, chosen, cuts, kept);
        const int64_t n_next = network_.layers[state.layer].given->n_next;
        for (const bool above : {true, false}) {
            State<D> child{state.layer, above ? halves.above : halves.below, lines, state.next, state.hash, state.pattern, node, !above};
            if (above) child.next = copy_of<D>(state.next, n_next, arena);
            settle(child, chosen, size, above);
            child.lines = rest;
            if (stopped) break;
            const Arena::Mark inner = arena.mark();
            descend(child);
            arena.release(inner);
        }
        arena.release(mark);
        return true;
    }

    Lines without(const Lines& lines, int64_t chosen, const uint64_t* cuts, int64_t kept) {
        Lines rest{kept - 1, empty_maps<D>(arena, kept - 1), arena.take<double>(padded(kept - 1)), arena.take<int32_t>(kept - 1)};
        int64_t to = 0;
        for (int64_t w = 0; w * 64 < lines.n; ++w)
            for (uint64_t bits = cuts[w]; bits; bits &= bits - 1) {
                const int64_t i = w * 64 + std::countr_zero(bits);
                if (i == chosen) continue;
                for (int d = 0; d < D; ++d) rest.maps.a[d][to] = lines.maps.a[d][i];
                rest.maps.c[to] = lines.maps.c[i];
                rest.maps.size[to] = lines.maps.size[i];
                rest.tolerance[to] = lines.tolerance[i];
                rest.index[to++] = index_of(lines, i);
            }
        return rest;
    }

    void finish(const State<D>& state, const Maps& outputs) {
        branches_.attach(state.parent, state.side, ~found.add(state, outputs));
        if (++since_beat_ == kRegionsABeat) tell();
    }

    void tell() {
        stopped |= enough(since_beat_);
        since_beat_ = 0;
    }

    const Network& network_;
    Branches& branches_;
    std::vector<int64_t>& after_layer_;
    int64_t since_beat_ = 0;
    std::vector<double> row_;
    std::vector<const double*> weight_;
};

}  // namespace lmn::subdivision
