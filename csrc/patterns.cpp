#include "patterns.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "hash.hpp"
#include "parallel.hpp"

namespace lmn {

namespace {
constexpr int64_t kSamplesATask = 256;
constexpr double kNanosecondsABit = 0.2, kNanosecondsAWord = 5, kNanosecondsAPattern = 100;

// Bit k: z[k] > b, for 64 values. Bytes first, which compilers do in vectors; a product then gathers the bits of eight of them.
template <class T>
uint64_t word_above(const T* z, T b) {
    uint8_t byte[64];
    for (int k = 0; k < 64; ++k) byte[k] = z[k] > b;
    uint64_t word = 0;
    for (int k = 0; k < 8; ++k) {
        uint64_t eight = 0;
        for (int i = 0; i < 8; ++i) eight |= uint64_t(byte[8 * k + i]) << (8 * i);  // one load
        word |= (eight * 0x0102040810204080) >> 56 << (8 * k);
    }
    return word;
}
}  // namespace

template <class T>
void pack_bits(const T* z, int64_t n_samples, int64_t n_units, const double* breakpoint, int64_t n_breakpoints, uint64_t* words,
               int64_t n_words, int64_t first_word, int threads) {
    const int64_t n_lines = n_units * n_breakpoints;
    threads = workers_for(kNanosecondsABit * double(n_samples * n_lines), threads);
    parallel_for(0, (n_samples + kSamplesATask - 1) / kSamplesATask, threads, [&](int64_t task, int) {
        const int64_t last = std::min(n_samples, (task + 1) * kSamplesATask);
        for (int64_t s = task * kSamplesATask; s < last; ++s) {
            const T* row = z + s * n_units;
            uint64_t* to = words + s * n_words + first_word;
            if (n_breakpoints == 1) {
                const T b = T(breakpoint[0]);
                int64_t i = 0;
                for (; i + 64 <= n_lines; i += 64) to[i / 64] = word_above(row + i, b);
                if (i < n_lines) {
                    T rest[64];
                    std::fill(std::copy(row + i, row + n_lines, rest), rest + 64, b);
                    to[i / 64] = word_above(rest, b);
                }
            } else {
                std::fill_n(to, (n_lines + 63) / 64, uint64_t(0));
                for (int64_t u = 0, i = 0; u < n_units; ++u)
                    for (int64_t b = 0; b < n_breakpoints; ++b, ++i)
                        to[i / 64] |= uint64_t(row[u] > T(breakpoint[b])) << (i % 64);
            }
        }
    });
}

template void pack_bits(const float*, int64_t, int64_t, const double*, int64_t, uint64_t*, int64_t, int64_t, int);
template void pack_bits(const double*, int64_t, int64_t, const double*, int64_t, uint64_t*, int64_t, int64_t, int);

// Patterns that are put in together, and what became of them.
struct PatternSet::Piece {
    const uint64_t* words;
    int64_t n;
    const int64_t *index, *count;
    Hash* hash;
    int64_t* row;    // the row of each; of one that is new, n_rows + its first place in the piece, until it has one
    int64_t* added;  // [place] points of a new pattern, else 0
    int64_t* least;  // [place] and the earliest of them
    uint64_t* slot;  // [place] and where in its shard's table it is

    const uint64_t* words_of(int64_t i, int64_t n_words) const { return words + i * n_words; }
    int64_t points(int64_t i) const { return count ? count[i] : 1; }
};

// Two lanes, each a chain of bijections of the words: equal hashes of different patterns are as rare as 128 random bits make them.
PatternSet::Hash PatternSet::hash_of(const uint64_t* words, int64_t n_words) {
    uint64_t a = 0x243f6a8885a308d3, b = 0x13198a2e03707344;  // digits of pi
    for (int64_t w = 0; w < n_words; ++w) {
        a = mixed(a ^ words[w]);
        b = mixed(b + words[w] * 0xd6e8feb86659fd93);
    }
    return {a, b};
}

void PatternSet::check_whole() const {
    if (broken_) throw std::logic_error("the set of patterns ran out of memory before, and is not to be used");
}

void PatternSet::insert(const uint64_t* words, int64_t n, const int64_t* index, const int64_t* count, int threads, int64_t* key) {
    check_whole();
    broken_ = true;  // until all is put in: where an exception leaves the tables, they name rows that are not there
    const int64_t most = std::min(n, kPiece);
    std::vector<Hash> hash(most);
    std::vector<int64_t> row(key ? 0 : most), added(most), least(most);
    std::vector<uint64_t> slot(most);
    threads = workers_for(double(most) * (kNanosecondsAPattern + kNanosecondsAWord * double(n_words_)), threads);
    for (int64_t at = 0; at < n; at += kPiece)
        insert_piece({words + at * n_words_, std::min(kPiece, n - at), index + at, count ? count + at : nullptr, hash.data(),
                      key ? key + at : row.data(), added.data(), least.data(), slot.data()}, threads);
    broken_ = false;
}

void PatternSet::insert_piece(const Piece& piece, int threads) {
    if (n_rows_ + piece.n >= std::numeric_limits<uint32_t>::max()) throw std::length_error("more than 2^32 distinct patterns");
    parallel_for(0, (piece.n + kSamplesATask - 1) / kSamplesATask, threads, [&](int64_t task, int) {
        const int64_t last = std::min(piece.n, (task + 1) * kSamplesATask);
        for (int64_t i = task * kSamplesATask; i < last; ++i) piece.hash[i] = hash_of(piece.words_of(i, n_words_), n_words_);
    });
    const auto shard_of = [&](int64_t i) { return piece.hash[i].a >> (64 - kShardBits); };
    std::array<int64_t, kShards + 1> start{};
    for (int64_t i = 0; i < piece.n; ++i) ++start[shard_of(i) + 1];
    for (int s = 0; s < kShards; ++s) start[s + 1] += start[s];
    std::vector<int64_t> order(piece.n);
    auto next = start;
    for (int64_t i = 0; i < piece.n; ++i) order[next[shard_of(i)]++] = i;
    parallel_for(0, kShards, threads, [&](int64_t s, int) {
        reserve(shards_[s], start[s + 1] - start[s]);
        for (int64_t k = start[s]; k < start[s + 1]; ++k) piece.row[order[k]] = search(shards_[s], piece, order[k]);
    });

    // New patterns become rows, in the order in which they came.
    const int64_t before = n_rows_;
    int64_t n_new = 0;
    for (int64_t i = 0; i < piece.n; ++i) n_new += piece.row[i] == before + i;
    words_.reserve((before + n_new) * n_words_);
    hash_.reserve(before + n_new);
    count_.reserve(before + n_new);
    first_.reserve(before + n_new);
    for (int64_t i = 0; i < piece.n; ++i) {
        if (piece.row[i] < before) continue;
        const int64_t first = piece.row[i] - before;
        if (first != i) {
            piece.row[i] = piece.row[first];  // which has its row by now
            continue;
        }
        const int64_t row = piece.row[i] = n_rows_++;
        std::copy_n(piece.words_of(i, n_words_), n_words_, words_.data() + row * n_words_);
        hash_[row] = piece.hash[i];
        count_[row] = piece.added[i];
        first_[row] = piece.least[i];
        shards_[shard_of(i)].table[piece.slot[i]] = uint32_t(row + 1);
    }
}

// The row of the i-th pattern of a piece, or where there is none, n_rows and the place in the piece that it is first at.
int64_t PatternSet::search(Shard& shard, const Piece& piece, int64_t i) {
    const uint64_t mask = shard.table.size() - 1;
    const Hash& hash = piece.hash[i];
    for (uint64_t slot = hash.a & mask;; slot = (slot + 1) & mask) {
        const int64_t row = int64_t(shard.table[slot]) - 1, place = row - n_rows_;
        if (row < 0) {
            shard.table[slot] = uint32_t(n_rows_ + i + 1);
            piece.slot[i] = slot;
            ++shard.size;
            piece.added[i] = piece.points(i);
            piece.least[i] = piece.index[i];
            return n_rows_ + i;
        }
        const bool is_new = place >= 0;
        if ((is_new ? piece.hash[place] : hash_[row]) != hash) continue;
        if (verify_ && n_words_ > 0) {
            const uint64_t* known = is_new ? piece.words_of(place, n_words_) : words_.data() + row * n_words_;
            if (std::memcmp(known, piece.words_of(i, n_words_), n_words_ * sizeof(uint64_t)) != 0) {
                ++shard.collisions;
                continue;
            }
        }
        (is_new ? piece.added[place] : count_[row]) += piece.points(i);
        int64_t& first = is_new ? piece.least[place] : first_[row];
        first = std::min(first, piece.index[i]);
        return row;
    }
}

void PatternSet::reserve(Shard& shard, int64_t more) {
    const size_t needed = size_t(shard.size + more) * 3 / 2 + 1;
    if (needed <= shard.table.size()) return;
    std::vector<uint32_t> table(std::max<size_t>(64, std::bit_ceil(needed)), 0);
    const uint64_t mask = table.size() - 1;
    for (const uint32_t row : shard.table) {
        if (!row) continue;
        uint64_t slot = hash_[row - 1].a & mask;
        while (table[slot]) slot = (slot + 1) & mask;
        table[slot] = row;
    }
    shard.table.swap(table);
}

int64_t PatternSet::collisions() const {
    int64_t sum = 0;
    for (const Shard& shard : shards_) sum += shard.collisions;
    return sum;
}

PatternSet::Rows PatternSet::take(int64_t* key, int64_t n_keys) {
    check_whole();
    const int64_t n = n_rows_;
    for (Shard& shard : shards_) std::vector<uint32_t>().swap(shard.table);
    hash_.taken();
    if (!std::is_sorted(first_.data(), first_.data() + n)) {
        std::vector<int64_t> order(n), position(n);
        std::iota(order.begin(), order.end(), int64_t(0));
        std::sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return first_[i] < first_[j]; });
        for (int64_t i = 0; i < n; ++i) position[order[i]] = i;
        for (int64_t i = 0; i < n_keys; ++i) key[i] = position[key[i]];
        for (int64_t i = 0; i < n; ++i)  // each cycle of the permutation in turn, in place
            while (position[i] != i) {
                const int64_t to = position[i];
                std::swap_ranges(words_.data() + i * n_words_, words_.data() + (i + 1) * n_words_, words_.data() + to * n_words_);
                std::swap(count_[i], count_[to]);
                std::swap(first_[i], first_[to]);
                std::swap(position[i], position[to]);
            }
    }
    n_rows_ = 0;
    for (Shard& shard : shards_) shard.size = shard.collisions = 0;
    return {words_.taken(), count_.taken(), first_.taken(), n};
}

}  // namespace lmn
