// Fibers, barriers and shared memory of emulator.h, and a Python module that takes the place of finpercep._C: the operators
// on CPU tensors are then the CUDA kernels.
#include "emulator.h"

#include <pybind11/pybind11.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/registration.h"

namespace emulator {

Index thread, block, size;

namespace {

constexpr int kMostThreads = 1024, kWarp = 32;
constexpr size_t kStack = 128 << 10, kStaticShared = 48 << 10, kMostShared = 99 << 10;  // of sm_86, the smallest of ours

enum class State { ready, at_block, at_warp, done };

struct Fiber {
  std::unique_ptr<char[]> stack;
  ucontext_t start;
  jmp_buf here;
  bool begun = false;
  State state = State::done;
};

struct Warp {
  int arrived = 0;
  unsigned exchanges = 0;
  alignas(16) char slots[2][kWarp * kSlot];  // in turn: a slot is free again when all have come to the next exchange
};

struct Machine {
  Order order = Order::forward;
  int64_t last_blocks = -1;  // launches of which the last block alone is still to run
  std::mutex busy;
  Fiber fibers[kMostThreads];
  Warp warps[kMostThreads / kWarp];
  int at_block = 0;
  jmp_buf scheduler;
  ucontext_t first_switch;
  const std::function<void()>* kernel = nullptr;
  std::vector<std::pair<const void*, size_t>> shared_keys;
  size_t shared_used = 0, dynamic_bytes = 0;
  int64_t launches = 0;
  alignas(16) unsigned char memory[kMostShared], dynamic[kMostShared];
  uint64_t random = 1;

  unsigned dice(unsigned sides) {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    return unsigned(random >> 33) % sides;
  }
};
Machine machine;

[[noreturn]] void fail(const char* message) {
  std::fprintf(stderr, "emulator: block %u, thread %u: %s\n", block.x, thread.x, message);
  std::abort();
}

void fiber_main() {
  for (;;) {
    (*machine.kernel)();
    Fiber& fiber = machine.fibers[thread.x];
    fiber.state = State::done;
    if (_setjmp(fiber.here) == 0) _longjmp(machine.scheduler, 1);
  }
}

// From the scheduler into a fiber, until it waits or ends.
void resume(int index) {
  Fiber& fiber = machine.fibers[index];
  thread.x = unsigned(index);
  if (_setjmp(machine.scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.here, 1);
  fiber.begun = true;
  fiber.stack.reset(new char[kStack]);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, fiber_main, 0);
  swapcontext(&machine.first_switch, &fiber.start);
}

void wait(State state) {
  Fiber& fiber = machine.fibers[thread.x];
  fiber.state = state;
  if (_setjmp(fiber.here) == 0) _longjmp(machine.scheduler, 1);
}

void run_block(int threads) {
  std::memset(machine.memory, 0xff, machine.shared_used);  // NaN
  std::memset(machine.dynamic, 0xff, machine.dynamic_bytes);
  std::vector<int> turns(static_cast<size_t>(threads));
  for (int t = 0; t < threads; ++t) {
    machine.fibers[t].state = State::ready;
    turns[static_cast<size_t>(t)] = machine.order == Order::backward ? threads - 1 - t : t;
  }
  for (int w = 0; w < threads / kWarp; ++w) machine.warps[w].arrived = 0, machine.warps[w].exchanges = 0;
  machine.at_block = 0;
  for (int done = 0; done < threads;) {
    if (machine.order == Order::shuffled)
      for (unsigned t = unsigned(threads) - 1; t > 0; --t) std::swap(turns[t], turns[machine.dice(t + 1)]);
    bool moved = false;
    for (int t : turns) {
      if (machine.fibers[t].state != State::ready) continue;
      resume(t);
      moved = true;
      if (machine.fibers[t].state == State::done) ++done;
    }
    if (machine.at_block == threads) {
      for (int t = 0; t < threads; ++t) machine.fibers[t].state = State::ready;
      machine.at_block = 0, moved = true;
    }
    if (!moved && done < threads) fail("some threads wait for others that have left, or that wait elsewhere");
  }
}

}  // namespace

void set_order(Order order) { machine.order = order; }
void only_last_blocks(int64_t launches) { machine.last_blocks = launches; }

void run(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(machine.busy);
  if (threads % kWarp != 0 || threads > kMostThreads) fail("whole warps, at most 1024 threads");
  if (size_t(shared_bytes) > kMostShared) fail("too much dynamic shared memory");
  ++machine.launches;
  machine.kernel = &kernel;
  machine.shared_keys.clear();
  machine.shared_used = 0, machine.dynamic_bytes = size_t(shared_bytes);
  size.x = unsigned(threads);
  const bool backward = machine.order != Order::forward;
  if (machine.last_blocks == 0) return;
  if (machine.last_blocks > 0) {
    --machine.last_blocks;
    block.x = unsigned(blocks - 1);
    return run_block(threads);
  }
  for (int64_t b = 0; b < blocks; ++b) {
    block.x = unsigned(backward ? blocks - 1 - b : b);
    run_block(threads);
  }
}

void* shared(const void* key, size_t bytes) {
  size_t offset = 0;
  for (const auto& [known, size] : machine.shared_keys) {
    if (known == key) return machine.memory + offset;
    offset += size;
  }
  bytes = (bytes + 15) / 16 * 16;
  if (offset + bytes > kStaticShared) fail("too much static shared memory");
  machine.shared_keys.emplace_back(key, bytes);
  std::memset(machine.memory + offset, 0xff, bytes);
  machine.shared_used = offset + bytes;
  return machine.memory + offset;
}

int64_t launches() { return machine.launches; }

unsigned char* dynamic_shared() { return machine.dynamic; }

void block_barrier() {
  ++machine.at_block;
  wait(State::at_block);
}

const char* exchange_bytes(const void* value, size_t bytes) {
  const int index = int(thread.x) / kWarp, lane = int(thread.x) % kWarp;
  Warp& warp = machine.warps[index];
  char* slots = warp.slots[warp.exchanges % 2];
  std::memcpy(slots + lane * kSlot, value, bytes);
  if (++warp.arrived < kWarp) {
    wait(State::at_warp);
  } else {
    warp.arrived = 0, ++warp.exchanges;
    for (int k = 0; k < kWarp; ++k) machine.fibers[index * kWarp + k].state = State::ready;
  }
  return slots;
}

}  // namespace emulator

STABLE_TORCH_LIBRARY(finpercep, m) { finpercep::define_schemas(m); }
STABLE_TORCH_LIBRARY_IMPL(finpercep, CPU, m) { finpercep::register_kernels(m); }

namespace {

namespace py = pybind11;
// The tests of the operators run at every SIMD level of finpercep._C; here each level is an order of the threads.
constexpr std::pair<const char*, emulator::Order> kLevels[] = {
    {"baseline", emulator::Order::forward}, {"avx2", emulator::Order::backward}, {"avx512", emulator::Order::shuffled}};

py::dict build_info() {
  py::list levels;
  for (const auto& level : kLevels) levels.append(level.first);
  py::dict info;
  info["compiler"] = "CUDA kernels, emulated";
  info["simd_compiled"] = levels;
  info["simd_usable"] = levels;
  info["simd"] = kLevels[0].first;
  return info;
}

void set_simd_level(const std::string& name) {
  for (const auto& level : kLevels)
    if (name == level.first) return emulator::set_order(level.second);
  throw py::value_error("no such level: " + name);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info);
  m.def("set_simd_level", &set_simd_level);
  m.def("launches", &emulator::launches, "Kernels launched so far.");
  m.def("only_last_blocks", &emulator::only_last_blocks, "Of so many launches; negative: all blocks of all again.");
}
