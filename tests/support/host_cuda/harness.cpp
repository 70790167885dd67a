// Runs emulated CUDA kernels: barriers, shared words and host threads for the blocks of a grid.
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

// A barrier of all threads that have not exited: as on a GPU, a thread that has exited is not waited for.
class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}

  void wait() {
    std::unique_lock lock(mutex_);
    const unsigned round = round_;
    ++waiting_;
    if (!release_if_complete()) released_.wait(lock, [&] { return round_ != round; });
  }
  void exit() {
    const std::lock_guard lock(mutex_);
    --members_;
    release_if_complete();
  }

 private:
  bool release_if_complete() {
    if (waiting_ < members_ || waiting_ == 0) return false;
    waiting_ = 0;
    ++round_;
    released_.notify_all();
    return true;
  }

  std::mutex mutex_;
  std::condition_variable released_;
  int members_, waiting_ = 0;
  unsigned round_ = 0;
};

// The state that the threads of a block share.
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
thread_local int linear;  // the thread's linear index in its block

// Runs one thread through all blocks of the grid, with a barrier of all threads before each.
void run_thread(int thread, int count, Barrier& between, const std::function<void()>& kernel) {
  linear = thread;
  threadIdx = dim3(thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y);
  for (unsigned i = 0; i < gridDim.x * gridDim.y * gridDim.z; ++i) {
    between.wait();
    if (thread == 0) block = std::make_unique<Block>(count);
    between.wait();
    blockIdx = dim3(i % gridDim.x, i / gridDim.x % gridDim.y, i / gridDim.x / gridDim.y);
    kernel();
    block->warps[thread / WARP]->exit();
    block->all.exit();
  }
}

}  // namespace

void run_grid(dim3 grid, dim3 threads, const std::function<void()>& kernel) {
  gridDim = grid;
  blockDim = threads;
  const unsigned count = threads.x * threads.y * threads.z;
  Barrier between(count);
  std::vector<std::thread> running;
  for (unsigned i = 0; i < count; ++i) running.emplace_back(run_thread, i, count, std::ref(between), std::cref(kernel));
  for (std::thread& thread : running) thread.join();
}

void wait_for_block() { block->all.wait(); }
void wait_for_warp() { block->warps[linear / WARP]->wait(); }
uint64_t& word_of(int lane) { return block->words[linear / WARP * WARP + lane]; }
int lane() { return linear % WARP; }

}  // namespace host_cuda
