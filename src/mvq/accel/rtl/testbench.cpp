// Drives a machine with what a file says, and writes what it did to another: see mvq.accel.rtl.simulation.
//
// Streams may stall at random; once valid, an offer stands until it is taken. A read of a partial sum gives what was in
// memory before the cycle's writes.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "Vmvq_machine.h"
#include "verilated.h"
#ifdef TRACE
#include "verilated_vcd_c.h"
#endif

namespace {

using Words = std::vector<uint32_t>;

// Ports of up to 64 bits are numbers, wider ones arrays of words.
template <class T> int port_words(const T &) { return (sizeof(T) + 3) / 4; }
template <class T> void put(T &port, const uint32_t *from) {
  uint64_t value = from[0];
  if (sizeof(T) == 8) value |= uint64_t(from[1]) << 32;
  port = T(value);
}
template <std::size_t N> void put(VlWide<N> &port, const uint32_t *from) {
  for (std::size_t i = 0; i < N; ++i) port[i] = from[i];
}
template <class T> void get(const T &port, uint32_t *to) {
  to[0] = uint32_t(port);
  if (sizeof(T) == 8) to[1] = uint32_t(uint64_t(port) >> 32);
}
template <std::size_t N> void get(const VlWide<N> &port, uint32_t *to) {
  for (std::size_t i = 0; i < N; ++i) to[i] = port[i];
}

uint64_t field(const Words &words, uint64_t start, unsigned width) {
  uint64_t found = 0;
  for (unsigned i = 0; i < width;) {
    const unsigned at = (start + i) % 32, n = std::min(32 - at, width - i);
    const uint64_t part = (words[(start + i) / 32] >> at) & (n == 32 ? 0xffffffffu : (1u << n) - 1);
    found |= part << i;
    i += n;
  }
  return found;
}

void set_field(Words &words, uint64_t start, unsigned width, uint64_t value) {
  for (unsigned i = 0; i < width; ++i) {
    const uint32_t bit = 1u << ((start + i) % 32);
    if (value >> i & 1) words[(start + i) / 32] |= bit;
    else words[(start + i) / 32] &= ~bit;
  }
}

struct File {
  FILE *file;
  File(const char *name, const char *mode) : file(std::fopen(name, mode)) {
    if (!file) { std::perror(name); std::exit(3); }
  }
  ~File() { std::fclose(file); }
  void read(void *to, std::size_t n) {
    if (n && std::fread(to, 1, n, file) != n) { std::fprintf(stderr, "input ends early\n"); std::exit(3); }
  }
  void write(const void *from, std::size_t n) { std::fwrite(from, 1, n, file); }
};

struct Random {
  uint64_t state;
  bool one_in_256(uint32_t share) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % 256 < share;
  }
};

// Items of a stream, each of so many words.
struct Stream {
  uint32_t words = 0, items = 0, next = 0;
  Words data;
  bool offered = false;
  void load(File &in) {
    in.read(&words, 4);
    in.read(&items, 4);
    data.resize(std::size_t(words) * items + 2);
    in.read(data.data(), std::size_t(words) * items * 4);
  }
  // Whether the item stands on the port in this cycle.
  bool offer(Random &random, uint32_t stalls) {
    if (!offered) offered = next < items && !random.one_in_256(stalls);
    return offered;
  }
  const uint32_t *item() const { return data.data() + std::size_t(words) * (next < items ? next : 0); }
  void taken() { ++next; offered = false; }
};

struct Header {
  uint64_t seed, most_cycles;
  uint32_t stalls, tiles, lanes, psum_bits, address_bits, addresses, rows, input_bits, inputs;
};

}  // namespace

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  auto context = std::make_unique<VerilatedContext>();
  auto machine = std::make_unique<Vmvq_machine>(context.get());
#ifdef TRACE
  context->traceEverOn(true);
  VerilatedVcdC trace;
  if (argc > 3) { machine->trace(&trace, 99); trace.open(argv[3]); }
#endif
  File in(argv[1], "rb");
  Header h;
  in.read(&h, sizeof h);
  Random random{h.seed * 2 + 1};
  Words storage, shape, points;
  for (Words *constant : {&storage, &shape, &points}) {
    uint32_t n;
    in.read(&n, 4);
    constant->resize(n + 2);
    in.read(constant->data(), std::size_t(n) * 4);
  }
  Stream layers, words;
  layers.load(in);
  words.load(in);
  // Inputs, a bank for each row of the array.
  std::vector<int8_t> banks(std::size_t(h.rows) * h.inputs);
  in.read(banks.data(), banks.size());
  // Partial sums of each tile: lanes of an address side by side.
  std::vector<int64_t> memory(std::size_t(h.tiles) * h.addresses * h.lanes);
  in.read(memory.data(), memory.size() * 8);

  const unsigned row = h.lanes * h.psum_bits;
  Words read_data((h.tiles * row + 31) / 32 + 2), results(read_data.size()), reads(h.tiles / 32 + 3), writes(reads.size());
  Words asked((h.rows * (1 + h.input_bits) + 31) / 32 + 2), found((h.rows * 8 + 31) / 32 + 2);
  uint64_t steps = 0, inputs = 0;
  bool granted = false;
  Words read_at((h.tiles * h.address_bits + 31) / 32 + 2), write_at(read_at.size());
  const int64_t sign = int64_t(1) << (h.psum_bits - 1);
  uint64_t cycle = 0, began = 0, last_write = 0, time = 0;
  bool started = false, fault = false;
  put(machine->storage, storage.data());
  put(machine->shape, shape.data());
  put(machine->points, points.data());
  machine->rst = 1;
  for (int i = 0; i < 2; ++i) {
    machine->clk = 0; machine->eval();
    machine->clk = 1; machine->eval();
  }
  machine->rst = 0;
  for (; cycle < h.most_cycles; ++cycle) {
    machine->layer_valid = layers.offer(random, h.stalls);
    machine->words_valid = words.offer(random, h.stalls);
    machine->reads_ready = granted = !random.one_in_256(h.stalls);
    put(machine->layer_payload, layers.item());
    put(machine->words_payload, words.item());
    put(machine->found, found.data());
    put(machine->memory, read_data.data());
    machine->clk = 0;
    machine->eval();
#ifdef TRACE
    if (argc > 3) trace.dump(time++);
#endif
    // A machine that rests may take its last layer in this cycle; the first block follows in the next.
    const bool over = started && cycle > began && machine->resting && layers.next == layers.items;
    if (machine->layer_valid && machine->layer_ready) {
      if (!started) { started = true; began = cycle + 1; }
      layers.taken();
    }
    if (machine->words_valid && machine->words_ready) words.taken();
    if (machine->reads_valid && granted) {
      ++steps;
      get(machine->reads_payload, asked.data());
      for (uint32_t row = 0; row < h.rows; ++row) {
        // What was not asked for is anything.
        uint64_t value = 0xa5;
        if (asked[row / 32] >> (row % 32) & 1) {
          const uint64_t at = field(asked, h.rows + uint64_t(row) * h.input_bits, h.input_bits);
          ++inputs;
          if (at >= h.inputs) fault = true;
          else value = uint8_t(banks[std::size_t(row) * h.inputs + at]);
        }
        set_field(found, row * 8, 8, value);
      }
    }
    get(machine->read, reads.data());
    get(machine->write, writes.data());
    get(machine->read_address, read_at.data());
    get(machine->write_address, write_at.data());
    get(machine->results, results.data());
    for (uint32_t t = 0; t < h.tiles; ++t) {
      if (!(reads[t / 32] >> (t % 32) & 1)) continue;
      const uint64_t at = field(read_at, uint64_t(t) * h.address_bits, h.address_bits);
      if (at >= h.addresses) { fault = true; continue; }
      for (uint32_t lane = 0; lane < h.lanes; ++lane)
        set_field(read_data, uint64_t(t) * row + lane * h.psum_bits, h.psum_bits,
                  uint64_t(memory[(std::size_t(t) * h.addresses + at) * h.lanes + lane]));
    }
    for (uint32_t t = 0; t < h.tiles; ++t) {
      if (!(writes[t / 32] >> (t % 32) & 1)) continue;
      last_write = cycle;
      const uint64_t at = field(write_at, uint64_t(t) * h.address_bits, h.address_bits);
      if (at >= h.addresses) { fault = true; continue; }
      for (uint32_t lane = 0; lane < h.lanes; ++lane) {
        const uint64_t bits = field(results, uint64_t(t) * row + lane * h.psum_bits, h.psum_bits);
        memory[(std::size_t(t) * h.addresses + at) * h.lanes + lane] = int64_t(bits ^ uint64_t(sign)) - sign;
      }
    }
    machine->clk = 1;
    machine->eval();
#ifdef TRACE
    if (argc > 3) trace.dump(time++);
#endif
    if (over) break;
  }
  machine->clk = 0;
  machine->eval();
#ifdef TRACE
  if (argc > 3) trace.close();
#endif
  (void)time;
  File out(argv[2], "wb");
  const uint64_t facts[8] = {cycle, last_write - began, layers.next, words.next, steps, inputs,
                             uint64_t(machine->overflow), uint64_t(fault)};
  out.write(facts, sizeof facts);
  out.write(memory.data(), memory.size() * 8);
  machine->final();
  return 0;
}
