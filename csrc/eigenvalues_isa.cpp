// Householder's tridiagonal form, then bisection by Sturm counts (Golub, Van Loan, Matrix Computations, 8.3.1 and 8.4.1): the same
// steps for all matrices, so that each has a lane, and some bisections go side by side to hide the time of a division.
#include "eigenvalues.hpp"

#include "scratch.hpp"

namespace lmn::LMN_ISA {
namespace {

using V = Vec<double>;
using M = IntVec<double>;
inline constexpr int kGroup = kLanes<double>;
inline constexpr int kGroups = 4;     // of matrices, in one call
inline constexpr int kSideBySide = 4;  // bisections
inline constexpr int kHalvings = 56;  // of an interval that is at most six times as long as the largest absolute eigenvalue
inline constexpr double kLeastPivot = 1e-290;
inline constexpr double kLeastTail = 1e-290;  // less is nothing beside a matrix of size 1, and has no inverse

inline V chosen(M mask, V a, V b) { return mask ? a : b; }

inline V root(V v) {
    for (int lane = 0; lane < kGroup; ++lane) v[lane] = __builtin_sqrt(v[lane]);
    return v;
}

// A group's matrices in tridiagonal form, each divided by its own largest entry.
struct Tridiagonal {
    V* diagonal;  // [row]
    V* squares;   // [row] of the entries left of the diagonal; none in the first row
    V low, high;  // where the eigenvalues are
    V scale;
};

void reduce(V* a, int n, Tridiagonal& to, V* v, V* w) {
    const auto at = [&](int i, int j) -> V& { return a[i * n + j]; };
    V beside{};  // the absolute value of the entry left of the diagonal
    to.squares[0] = V{};
    const auto widen = [&](int i, V left, V right) {
        const V low = to.diagonal[i] - left - right, high = to.diagonal[i] + left + right;
        to.low = i == 0 ? low : minimum(to.low, low);
        to.high = i == 0 ? high : maximum(to.high, high);
    };
    for (int j = 0; j < n; ++j) {
        to.diagonal[j] = at(j, j);
        if (j + 1 == n) {
            widen(j, beside, V{});
            break;
        }
        V tail{};
        for (int i = j + 2; i < n; ++i) tail += at(i, j) * at(i, j);
        const V x = at(j + 1, j), norm = root(tail + x * x);
        const V entry = chosen(tail > kLeastTail, chosen(x > 0, -norm, norm), x);
        const V next = absolute<double>(entry);
        to.squares[j + 1] = entry * entry;
        widen(j, beside, next);
        beside = next;
        if (j + 2 == n) continue;
        // The reflection 1 - tau v v' takes the column to (entry, 0, ..); nothing where it is there already.
        v[j + 1] = x - entry;
        for (int i = j + 2; i < n; ++i) v[i] = at(i, j);
        const V size = tail + v[j + 1] * v[j + 1];
        const V tau = chosen(tail > kLeastTail, 2 / chosen(tail > kLeastTail, size, V{} + 1), V{});
        V along{};
        for (int i = j + 1; i < n; ++i) {
            V sum{};
            for (int k = j + 1; k < n; ++k) sum += (k <= i ? at(i, k) : at(k, i)) * v[k];
            w[i] = tau * sum;
            along += w[i] * v[i];
        }
        along *= 0.5 * tau;
        for (int i = j + 1; i < n; ++i) w[i] -= along * v[i];
        for (int i = j + 1; i < n; ++i)
            for (int k = j + 1; k <= i; ++k) at(i, k) -= v[i] * w[k] + w[i] * v[k];
    }
}

// How many eigenvalues are below x: the negative pivots of T - x.
void counts(int n, const Tridiagonal* const* of, const V* x, M* below) {
    V pivot[kSideBySide];
    for (int c = 0; c < kSideBySide; ++c) {
        pivot[c] = V{} + 1;
        below[c] = M{};
    }
    for (int i = 0; i < n; ++i)
        for (int c = 0; c < kSideBySide; ++c) {
            const V next = of[c]->diagonal[i] - x[c] - of[c]->squares[i] / pivot[c];
            pivot[c] = chosen(absolute<double>(next) < kLeastPivot, V{} - kLeastPivot, next);
            below[c] += (pivot[c] < 0) & 1;
        }
}

// The eigenvalues of kSideBySide groups that have rank[c] larger ones.
void bisect(int n, const Tridiagonal* const* of, const int* rank, V* found) {
    V low[kSideBySide], high[kSideBySide];
    for (int c = 0; c < kSideBySide; ++c) {
        low[c] = of[c]->low;
        high[c] = of[c]->high;
    }
    for (int step = 0; step < kHalvings; ++step) {
        V middle[kSideBySide];
        M below[kSideBySide];
        for (int c = 0; c < kSideBySide; ++c) middle[c] = 0.5 * (low[c] + high[c]);
        counts(n, of, middle, below);
        for (int c = 0; c < kSideBySide; ++c) {
            const M above = below[c] > int64_t(n - 1 - rank[c]);  // the middle is
            high[c] = chosen(above, middle[c], high[c]);
            low[c] = chosen(above, low[c], middle[c]);
        }
    }
    for (int c = 0; c < kSideBySide; ++c) found[c] = 0.5 * (low[c] + high[c]) * of[c]->scale;
}

int64_t scratch_bytes(int rows) {
    return (int64_t(rows) * rows + 2 * rows + kGroups * 2 * int64_t(rows)) * int64_t(sizeof(V)) + (3 + 2 * kGroups) * 64 + 64;
}

void largest(const double* matrices, int count, int n, int wanted, double* out, void* memory) {
    char* cursor = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory) + 63) / 64 * 64);
    V* a = take<V>(cursor, int64_t(n) * n);
    V* v = take<V>(cursor, n);
    V* w = take<V>(cursor, n);
    Tridiagonal groups[kGroups];
    const int used = (count + kGroup - 1) / kGroup;
    for (int g = 0; g < used; ++g) {
        Tridiagonal& group = groups[g];
        group.diagonal = take<V>(cursor, n);
        group.squares = take<V>(cursor, n);
        V size{};
        for (int lane = 0; lane < kGroup; ++lane) {
            const int matrix = g * kGroup + lane < count ? g * kGroup + lane : count - 1;
            const double* from = matrices + int64_t(matrix) * n * n;
            for (int i = 0; i < n; ++i)
                for (int j = 0; j <= i; ++j) a[i * n + j][lane] = from[i * n + j];
        }
        for (int i = 0; i < n; ++i)
            for (int j = 0; j <= i; ++j) size = maximum(size, absolute<double>(a[i * n + j]));
        group.scale = size;
        const V divisor = chosen(size > 0, size, V{} + 1);
        for (int i = 0; i < n; ++i)
            for (int j = 0; j <= i; ++j) a[i * n + j] /= divisor;
        reduce(a, n, group, v, w);
    }
    for (int first = 0; first < used * wanted; first += kSideBySide) {
        const Tridiagonal* of[kSideBySide];
        int item[kSideBySide], rank[kSideBySide];
        for (int c = 0; c < kSideBySide; ++c) {
            item[c] = first + c < used * wanted ? first + c : first;
            of[c] = groups + item[c] / wanted;
            rank[c] = item[c] % wanted;
        }
        V found[kSideBySide];
        bisect(n, of, rank, found);
        for (int c = 0; c < kSideBySide && first + c < used * wanted; ++c)
            for (int lane = 0; lane < kGroup; ++lane) {
                const int matrix = item[c] / wanted * kGroup + lane;
                if (matrix < count) out[int64_t(matrix) * wanted + rank[c]] = found[c][lane];
            }
    }
}

}  // namespace

extern const EigenKernels eigen_kernels;
const EigenKernels eigen_kernels = {kGroup * kGroups, scratch_bytes, largest};

}  // namespace lmn::LMN_ISA
