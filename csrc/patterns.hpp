// Activation patterns in bulk: bits packed into words, and a set of the distinct ones with their counts.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace lmn {

// Bit u * n_breakpoints + b of a sample's words, from first_word on: z[sample][u] > breakpoint[b]. Bits beyond are zero.
template <class T>
void pack_bits(const T* z, int64_t n_samples, int64_t n_units, const double* breakpoint, int64_t n_breakpoints, uint64_t* words,
               int64_t n_words, int64_t first_word, int threads);

// The distinct ones among any number of patterns. Memory grows with the distinct patterns, never with how many are put in.
//
// A pattern is known by a 128-bit hash; with `verify` its bits are compared too. The set is split by hash into shards, each of
// which one thread at a time fills: the batches' threads share nothing and lock nothing, and the result depends on neither
// their number nor the batches.
class PatternSet {
public:
    PatternSet(int64_t n_words, bool verify) : n_words_(n_words), verify_(verify) {}

    // Put in n patterns [n][n_words], which stand for count[i] points each (one, if null), the earliest of them index[i].
    // key[i], if not null, is what position() takes.
    void insert(const uint64_t* words, int64_t n, const int64_t* index, const int64_t* count, int threads, int64_t* key);

    int64_t size() const;
    int64_t collisions() const;  // found by `verify`

    // In the order of their earliest points; arrays of size() entries.
    void write(uint64_t* words, int64_t* count, int64_t* first) const;

    // Keys to positions in that order, in place.
    void positions(int64_t* key, int64_t n, int threads) const;

private:
    static constexpr int kShardBits = 6, kShards = 1 << kShardBits;
    static constexpr int64_t kBlock = 512;  // entries that are allocated together: nothing is ever moved

    struct Entry {
        uint64_t hash[2];
        int64_t count, first;
    };

    struct Shard {
        std::vector<uint32_t> table;  // entry + 1, or 0; a power of two of slots, at most two thirds full
        std::vector<std::unique_ptr<Entry[]>> entries;
        std::vector<std::unique_ptr<uint64_t[]>> words;
        int64_t size = 0, collisions = 0;

        Entry& entry(int64_t i) const { return entries[i / kBlock][i % kBlock]; }
        const uint64_t* words_of(int64_t i, int64_t n_words) const { return words[i / kBlock].get() + i % kBlock * n_words; }
    };

    int64_t insert_one(Shard&, const uint64_t* words, const uint64_t* hash, int64_t index, int64_t count);
    void grow(Shard&);
    std::vector<std::pair<int64_t, int64_t>> by_first() const;  // (earliest point, key)

    int64_t n_words_;
    bool verify_;
    std::array<Shard, kShards> shards_;
};

}  // namespace lmn
