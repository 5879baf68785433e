// Activation patterns in bulk: bits packed into words, and a set of the distinct ones with their counts.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "grown.hpp"

namespace lmn {

// Bit u * n_breakpoints + b of a sample's words, from first_word on: z[sample][u] > breakpoint[b]. Bits beyond are zero.
template <class T>
void pack_bits(const T* z, int64_t n_samples, int64_t n_units, const double* breakpoint, int64_t n_breakpoints, uint64_t* words,
               int64_t n_words, int64_t first_word, int threads);

// The distinct ones among any number of patterns. Memory grows with the distinct patterns, never with how many are put in.
//
// A pattern is known by a 128-bit hash; with `verify` its bits are compared too. Patterns are rows in the order in which they
// are first put in; the table from hashes to rows is split by hash into shards, each of which one thread at a time searches and
// fills: the threads lock nothing, and the result depends on neither their number nor the batches. One caller at a time.
class PatternSet {
public:
    struct Rows {
        std::unique_ptr<uint64_t[], Free> words;
        std::unique_ptr<int64_t[], Free> count, first;
        int64_t size;
    };

    PatternSet(int64_t n_words, bool verify) : n_words_(n_words), verify_(verify) {}

    // Put in n patterns [n][n_words], which stand for count[i] points each (one, if null), the earliest of them index[i].
    // key[i], if not null, is what take() takes.
    void insert(const uint64_t* words, int64_t n, const int64_t* index, const int64_t* count, int threads, int64_t* key);

    int64_t n_words() const { return n_words_; }
    int64_t size() const { return n_rows_; }
    int64_t collisions() const;  // found by `verify`

    // The patterns in the order of their earliest points, and n_keys keys turned into positions in it; the set is empty then.
    Rows take(int64_t* key, int64_t n_keys);

private:
    static constexpr int kShardBits = 6, kShards = 1 << kShardBits;
    static constexpr int64_t kPiece = 1 << 14;  // patterns that are put in together

    struct Hash {
        uint64_t a, b;
        bool operator==(const Hash&) const = default;
    };

    struct Shard {
        std::vector<uint32_t> table;  // row + 1, or 0; a power of two of slots, at most two thirds full
        int64_t size = 0, collisions = 0;
    };

    struct Piece;

    static Hash hash_of(const uint64_t* words, int64_t n_words);
    void check_whole() const;
    void insert_piece(const Piece&, int threads);
    int64_t search(Shard&, const Piece&, int64_t i);
    void reserve(Shard&, int64_t more);

    int64_t n_words_;
    bool verify_;
    bool broken_ = false;
    int64_t n_rows_ = 0;
    Grown<uint64_t> words_;
    Grown<Hash> hash_;
    Grown<int64_t> count_, first_;
    std::array<Shard, kShards> shards_;
};

}  // namespace lmn
