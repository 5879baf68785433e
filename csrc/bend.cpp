#include "bend.hpp"

#include <vector>

#include "parallel.hpp"

namespace lmn {

void bend_units(const PartValues& parts, int64_t n_breakpoints, const double* slope, const double* offset, double* out, int threads) {
    const int64_t n = parts.n_units, n_pieces = n_breakpoints + 1;
    parallel_for(0, parts.n_parts, threads, [&](int64_t part, int) {
        thread_local std::vector<double> slopes, offsets;
        slopes.resize(n);
        offsets.resize(n);
        const uint64_t* words = parts.pattern + part * parts.n_words;
        for (int64_t u = 0, line = 0; u < n; ++u) {
            int64_t piece = 0;
            for (int64_t b = 0; b < n_breakpoints; ++b, ++line) piece += int64_t(words[line / 64] >> (line % 64) & 1);
            slopes[u] = slope[u * n_pieces + piece];
            offsets[u] = offset[u * n_pieces + piece];
        }
        for (int64_t p = 0; p < parts.n_points; ++p) {
            const double* from = parts.value + (parts.parent[part] * parts.n_points + p) * n;
            double* to = out + (part * parts.n_points + p) * n;
            for (int64_t u = 0; u < n; ++u) to[u] = slopes[u] * from[u] + offsets[u];
        }
    });
}

void bend_windows(const PartValues& parts, int64_t n_windows, int64_t width, const int64_t* member, int bits, double* out, int threads) {
    parallel_for(0, parts.n_parts, threads, [&](int64_t part, int) {
        thread_local std::vector<int64_t> largest;
        largest.resize(n_windows);
        const uint64_t* words = parts.pattern + part * parts.n_words;
        for (int64_t w = 0; w < n_windows; ++w) {
            int64_t position = 0;
            for (int b = 0; b < bits; ++b) position |= int64_t(words[(w * bits + b) / 64] >> ((w * bits + b) % 64) & 1) << b;
            largest[w] = member[w * width + position];
        }
        for (int64_t p = 0; p < parts.n_points; ++p) {
            const double* from = parts.value + (parts.parent[part] * parts.n_points + p) * parts.n_units;
            double* to = out + (part * parts.n_points + p) * n_windows;
            for (int64_t w = 0; w < n_windows; ++w) to[w] = from[largest[w]];
        }
    });
}

}  // namespace lmn
