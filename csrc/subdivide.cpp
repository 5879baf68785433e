// Pieces of the tree of cuts shared among threads, and results put together in the order of the tree.
#include "subdivide.hpp"

#include "cpu.hpp"
#include "parallel.hpp"
#include "walk.hpp"

namespace lmn {

LMN_TABLE_OF(SubdivideKernels, subdivide_kernels, subdivide_kernels_of)

const SubdivideKernels& subdivide_kernels() {
    static const SubdivideKernels& best = subdivide_kernels_of("");
    return best;
}

namespace {

using namespace subdivision;

constexpr int64_t kTasks = 128;  // pieces of the tree that threads take: a fixed number, so that results are too

// A piece of the tree: a state of its own, to be walked by whichever thread comes to it, and what was found in it.
template <int D>
struct Task {
    State<D> state;
    bool open = true;              // still to be walked
    int64_t parent = -1;           // the cut above it, among those at the top
    int side = 0;
    Subdivision part;
};

template <int D>
Task<D> detached(const State<D>& from, const Network& network, Arena& arena) {
    Task<D> task{from, true, from.parent, from.side, {}};
    State<D>& to = task.state;
    const int64_t n = from.lines.n;
    to.cell = copy_of<D>(from.cell, arena);
    to.lines = {n, copy_of<D>(from.lines.maps, n, arena), copied(from.lines.tolerance, n, arena), copied(from.lines.index, n, arena)};
    to.next = copy_of<D>(from.next, network.layers[from.layer].given->n_next, arena);
    to.pattern = copied(from.pattern, network.n_words, arena);
    to.parent = -1;
    return task;
}

template <int D>
class Subdivider {
public:
    Subdivider(const Network& network, bool geometry, int64_t max_regions, const Poll& poll)
        : network_(network), geometry_(geometry), max_regions_(max_regions), poll_(poll) {}

    Subdivision run(int threads) {
        top_.after_layer.resize(network_.layers.size());
        arenas_.resize(threads);
        grow();
        const auto work = [&](int64_t i, int worker) { walk(tasks_[i], worker); };
        parallel_for(0, int64_t(tasks_.size()), threads, work, [&] { stop_ = stop_ || poll_(); });
        return assembled();
    }

private:
    Walk<D, Regions<D>> walk_into(Subdivision& part, Arena& arena) {
        return {network_, Regions<D>{geometry_, network_.n_words, network_.n_out, part}, part.tree, part.after_layer, arena};
    }

    bool enough(int64_t more) {
        if ((n_found_ += more) > max_regions_) stop_ = true;
        return stop_;
    }

    // From the root, cut by cut, until there are tasks enough; where the tree ends before, its leaf is a task that is done.
    void grow() {
        tasks_.push_back(root());
        for (bool open = true; open && int64_t(tasks_.size()) < kTasks && !stop_;) {
            open = false;
            std::vector<Task<D>> grown;
            for (Task<D>& task : tasks_) {
                if (!task.open) {
                    grown.push_back(std::move(task));
                    continue;
                }
                std::vector<Task<D>> children;
                auto step = walk_into(task.part, arenas_[0]);
                step.descend = [&](State<D>& child) { children.push_back(detached(child, network_, states_)); };
                step.enough = [&](int64_t more) { return enough(more); };
                step.walk(task.state);
                task.open = false;
                if (children.empty()) {
                    grown.push_back(std::move(task));
                    continue;
                }
                open = true;
                const int64_t node = top_.tree.size();
                append(top_.tree.cut, task.part.tree.cut);
                top_.tree.child.insert(top_.tree.child.end(), {0, 0});
                for (size_t l = 0; l < top_.after_layer.size(); ++l) top_.after_layer[l] += task.part.after_layer[l];
                link(task, node);
                for (Task<D>& child : children) {
                    child.parent = node;
                    grown.push_back(std::move(child));
                }
            }
            tasks_ = std::move(grown);
        }
    }

    Task<D> root() {
        Task<D> task{};
        Arena& arena = states_;
        const PieceChain& chain = *network_.given;
        task.state.cell = cube<D>(arena, int32_t(network_.n_lines));
        task.state.layer = -1;  // its first layer's maps are in `next`
        task.state.next = empty_maps<D>(arena, chain.n_first);
        for (int64_t u = 0; u < chain.n_first; ++u) {
            for (int d = 0; d < D; ++d) task.state.next.a[d][u] = chain.a[u * D + d];
            task.state.next.c[u] = chain.c[u];
            task.state.next.size[u] = chain.size[u];
        }
        task.state.pattern = arena.take<uint64_t>(network_.n_words);
        std::fill_n(task.state.pattern, network_.n_words, 0);
        task.state.parent = -1;
        return task;
    }

    void walk(Task<D>& task, int worker) {
        if (!task.open || stop_) return;
        const bool polls = worker == 0;
        auto walk = walk_into(task.part, arenas_[worker]);
        walk.descend = [&](State<D>& child) { walk.decide(child); };
        walk.enough = [&](int64_t more) {
            if (polls && poll_()) stop_ = true;
            return enough(more);
        };
        walk.walk(task.state);
    }

    void link(const Task<D>& task, int64_t what) {
        top_.tree.attach(task.parent, task.side, what);
    }

    // All parts one after the other: the cuts at the top first, regions in the order of the tree.
    Subdivision assembled() {
        Subdivision& all = top_;
        all.n_words = network_.n_words;
        all.n_out = network_.n_out;
        for (Task<D>& task : tasks_) {
            Subdivision& part = task.part;
            const int64_t cuts = all.tree.size(), regions = all.n_regions;
            link(task, part.tree.child.empty() ? ~regions : cuts);
            append(all.tree.cut, part.tree.cut);
            for (const int64_t child : part.tree.child) all.tree.child.push_back(child >= 0 ? child + cuts : child - regions);
            for (size_t l = 0; l < part.after_layer.size(); ++l) all.after_layer[l] += part.after_layer[l];
            all.n_regions += part.n_regions;
            const auto join = [&](auto... column) { (append(all.*column, part.*column), ...); };
            join(&Subdivision::pattern, &Subdivision::measure, &Subdivision::centre, &Subdivision::map,
                 &Subdivision::n_vertices, &Subdivision::vertex, &Subdivision::vertex_id, &Subdivision::n_facets,
                 &Subdivision::facet_id, &Subdivision::facet_line, &Subdivision::edge_id);
            part = {};
        }
        all.stopped = stop_;
        return std::move(all);
    }

    const Network& network_;
    const bool geometry_;
    const int64_t max_regions_;
    const Poll& poll_;
    Arena states_;  // of the tasks: each on cache lines of its own
    std::vector<Task<D>> tasks_;
    std::vector<Arena> arenas_;  // of each worker
    Subdivision top_;
    std::atomic<int64_t> n_found_{0};
    std::atomic<bool> stop_{false};
};

}  // namespace

Subdivision subdivide(const PieceChain& chain, bool geometry, int64_t max_regions, int threads, const Poll& poll) {
    const Network network = prepared(chain);
    switch (chain.dimension) {
        case 1: return Subdivider<1>(network, geometry, max_regions, poll).run(threads);
        case 2: return Subdivider<2>(network, geometry, max_regions, poll).run(threads);
        default: return Subdivider<3>(network, geometry, max_regions, poll).run(threads);
    }
}

}  // namespace lmn
