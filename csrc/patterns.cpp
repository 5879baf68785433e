#include "patterns.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "hash.hpp"
#include "parallel.hpp"

namespace lmn {

namespace {
constexpr int64_t kSamplesATask = 256;
constexpr double kNanosecondsABit = 0.2, kNanosecondsAWord = 5, kNanosecondsAPattern = 100;

// Two lanes, each a chain of bijections of the words: equal hashes of different patterns are as rare as 128 random bits make them.
void hash_of(const uint64_t* words, int64_t n_words, uint64_t* hash) {
    uint64_t a = 0x243f6a8885a308d3, b = 0x13198a2e03707344;  // digits of pi
    for (int64_t w = 0; w < n_words; ++w) {
        a = mixed(a ^ words[w]);
        b = mixed(b + words[w] * 0xd6e8feb86659fd93);
    }
    hash[0] = a;
    hash[1] = b;
}
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

void PatternSet::insert(const uint64_t* words, int64_t n, const int64_t* index, const int64_t* count, int threads, int64_t* key) {
    std::vector<uint64_t> hash(2 * n);
    threads = workers_for(double(n) * (kNanosecondsAPattern + kNanosecondsAWord * double(n_words_)), threads);
    parallel_for(0, (n + kSamplesATask - 1) / kSamplesATask, threads, [&](int64_t task, int) {
        const int64_t last = std::min(n, (task + 1) * kSamplesATask);
        for (int64_t i = task * kSamplesATask; i < last; ++i) hash_of(words + i * n_words_, n_words_, hash.data() + 2 * i);
    });
    const auto shard_of = [&](int64_t i) { return hash[2 * i] >> (64 - kShardBits); };
    std::array<int64_t, kShards + 1> start{};
    for (int64_t i = 0; i < n; ++i) ++start[shard_of(i) + 1];
    for (int s = 0; s < kShards; ++s) start[s + 1] += start[s];
    std::vector<int64_t> order(n);
    auto next = start;
    for (int64_t i = 0; i < n; ++i) order[next[shard_of(i)]++] = i;
    parallel_for(0, kShards, threads, [&](int64_t s, int) {
        for (int64_t k = start[s]; k < start[s + 1]; ++k) {
            const int64_t i = order[k];
            const int64_t entry = insert_one(shards_[s], words + i * n_words_, hash.data() + 2 * i, index[i], count ? count[i] : 1);
            if (key) key[i] = entry << kShardBits | s;
        }
    });
}

int64_t PatternSet::insert_one(Shard& shard, const uint64_t* words, const uint64_t* hash, int64_t index, int64_t count) {
    if (3 * (shard.size + 1) > 2 * int64_t(shard.table.size())) grow(shard);
    const uint64_t mask = shard.table.size() - 1;
    for (uint64_t slot = hash[0] & mask;; slot = (slot + 1) & mask) {
        const int64_t at = int64_t(shard.table[slot]) - 1;
        if (at < 0) {
            shard.table[slot] = uint32_t(shard.size + 1);
            break;
        }
        Entry& entry = shard.entry(at);
        if (entry.hash[0] != hash[0] || entry.hash[1] != hash[1]) continue;
        if (verify_ && std::memcmp(shard.words_of(at, n_words_), words, n_words_ * sizeof(uint64_t)) != 0) {
            ++shard.collisions;
            continue;
        }
        entry.count += count;
        entry.first = std::min(entry.first, index);
        return at;
    }
    if (shard.size % kBlock == 0) {
        shard.entries.push_back(std::make_unique_for_overwrite<Entry[]>(kBlock));
        shard.words.push_back(std::make_unique_for_overwrite<uint64_t[]>(kBlock * n_words_));
    }
    const int64_t at = shard.size++;
    shard.entry(at) = {{hash[0], hash[1]}, count, index};
    std::copy_n(words, n_words_, shard.words.back().get() + at % kBlock * n_words_);
    return at;
}

void PatternSet::grow(Shard& shard) {
    shard.table.assign(std::max<size_t>(64, 2 * shard.table.size()), 0);
    const uint64_t mask = shard.table.size() - 1;
    for (int64_t i = 0; i < shard.size; ++i) {
        uint64_t slot = shard.entry(i).hash[0] & mask;
        while (shard.table[slot]) slot = (slot + 1) & mask;
        shard.table[slot] = uint32_t(i + 1);
    }
}

int64_t PatternSet::size() const {
    int64_t sum = 0;
    for (const Shard& shard : shards_) sum += shard.size;
    return sum;
}

int64_t PatternSet::collisions() const {
    int64_t sum = 0;
    for (const Shard& shard : shards_) sum += shard.collisions;
    return sum;
}

std::vector<std::pair<int64_t, int64_t>> PatternSet::by_first() const {
    std::vector<std::pair<int64_t, int64_t>> all;
    all.reserve(size());
    for (int s = 0; s < kShards; ++s)
        for (int64_t i = 0; i < shards_[s].size; ++i) all.emplace_back(shards_[s].entry(i).first, i << kShardBits | s);
    std::sort(all.begin(), all.end());
    return all;
}

void PatternSet::write(uint64_t* words, int64_t* count, int64_t* first) const {
    int64_t position = 0;
    for (const auto& [earliest, key] : by_first()) {
        const Shard& shard = shards_[key & (kShards - 1)];
        const int64_t i = key >> kShardBits;
        std::copy_n(shard.words_of(i, n_words_), n_words_, words + position * n_words_);
        count[position] = shard.entry(i).count;
        first[position++] = earliest;
    }
}

void PatternSet::positions(int64_t* key, int64_t n, int threads) const {
    std::array<std::vector<int64_t>, kShards> position;
    for (int s = 0; s < kShards; ++s) position[s].resize(shards_[s].size);
    int64_t next = 0;
    for (const auto& [earliest, k] : by_first()) position[k & (kShards - 1)][k >> kShardBits] = next++;
    parallel_for(0, (n + kSamplesATask - 1) / kSamplesATask, threads, [&](int64_t task, int) {
        const int64_t last = std::min(n, (task + 1) * kSamplesATask);
        for (int64_t i = task * kSamplesATask; i < last; ++i) key[i] = position[key[i] & (kShards - 1)][key[i] >> kShardBits];
    });
}

}  // namespace lmn
