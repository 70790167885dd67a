#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cuda_runtime.h"

thread_local dim3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace host_cuda {

namespace {

// All that have not left meet: as on a card, where a thread that has ended is waited for no more.
class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}

  void wait() {
    std::unique_lock lock(mutex_);
    const unsigned round = round_;
    ++waiting_;
    if (!all_met()) met_.wait(lock, [&] { return round_ != round; });
  }
  void leave() {
    const std::lock_guard lock(mutex_);
    --members_;
    all_met();
  }

 private:
  bool all_met() {
    if (waiting_ < members_ || waiting_ == 0) return false;
    waiting_ = 0;
    ++round_;
    met_.notify_all();
    return true;
  }

  std::mutex mutex_;
  std::condition_variable met_;
  int members_, waiting_ = 0;
  unsigned round_ = 0;
};

// What the threads of a block share.
struct Block {
  Barrier all;
  std::vector<std::unique_ptr<Barrier>> warps;
  std::vector<uint64_t> words;

  explicit Block(int threads) : all(threads), words(threads) {
    for (int begin = 0; begin < threads; begin += WARP)
      warps.push_back(std::make_unique<Barrier>(std::min(WARP, threads - begin)));
  }
};

std::unique_ptr<Block> block;

// A thread goes through the blocks of the grid, and meets all others before each.
void run_thread(int thread, Barrier& between, const std::function<void()>& kernel) {
  threadIdx = dim3(thread);
  for (unsigned i = 0; i < gridDim.x * gridDim.y * gridDim.z; ++i) {
    between.wait();
    if (thread == 0) block = std::make_unique<Block>(blockDim.x);
    between.wait();
    blockIdx = dim3(i % gridDim.x, i / gridDim.x % gridDim.y, i / gridDim.x / gridDim.y);
    kernel();
    block->warps[thread / WARP]->leave();
    block->all.leave();
  }
}

}  // namespace

void run(dim3 grid, dim3 threads, const std::function<void()>& kernel) {
  gridDim = grid;
  blockDim = threads;
  Barrier between(threads.x);
  std::vector<std::thread> running;
  for (unsigned i = 0; i < threads.x; ++i) running.emplace_back(run_thread, i, std::ref(between), std::cref(kernel));
  for (std::thread& thread : running) thread.join();
}

void wait_for_block() { block->all.wait(); }
void wait_for_warp() { block->warps[threadIdx.x / WARP]->wait(); }
uint64_t& word_of(int lane) { return block->words[threadIdx.x / WARP * WARP + lane]; }
int lane() { return threadIdx.x % WARP; }

}  // namespace host_cuda
