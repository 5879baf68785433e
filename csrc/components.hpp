// Connected components of a graph, by union and find.
#pragma once

#include <cstdint>
#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

namespace lmn {

inline int64_t count_components(int64_t n_nodes, int64_t n_edges, const int64_t* edge) {
    std::vector<int64_t> parent(n_nodes);
    std::iota(parent.begin(), parent.end(), int64_t(0));
    const auto root = [&](int64_t node) {
        while (parent[node] != node) node = parent[node] = parent[parent[node]];
        return node;
    };
    int64_t count = n_nodes;
    for (int64_t e = 0; e < n_edges; ++e) {
        const int64_t a = root(edge[2 * e]), b = root(edge[2 * e + 1]);
        if (a == b) continue;
        parent[std::max(a, b)] = std::min(a, b);
        --count;
    }
    return count;
}

}  // namespace lmn
