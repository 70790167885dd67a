// Runs emulated CUDA kernels: barriers, shared words and the threads of a grid's blocks.
// Under a sanitizer each thread of a block is a thread of the host, which the sanitizer watches. Else they are fibers
// of one host thread, each of which runs to its next barrier: that takes a twentieth of the time.
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HOST_THREADS 1
#else
#define HOST_THREADS 0
#include <ucontext.h>
#endif

#include "cuda_runtime.h"

thread_local dim3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace host_cuda {

namespace {

thread_local int linear;  // the thread's linear index in its block

#if HOST_THREADS
class Monitor {
 public:
  std::unique_lock<std::mutex> enter() { return std::unique_lock(mutex_); }
  template <class Condition>
  void wait(std::unique_lock<std::mutex>& lock, Condition condition) {
    changed_.wait(lock, condition);
  }
  void notify() { changed_.notify_all(); }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
};

void run_threads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> running;
  for (int i = 0; i < count; ++i) running.emplace_back(body, i);
  for (std::thread& thread : running) thread.join();
}
#else
constexpr size_t STACK = 256 << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done;
};

std::vector<Fiber> fibers;
ucontext_t scheduler;
const std::function<void(int)>* fiber_body;

void enter_fiber(int thread) {
  (*fiber_body)(thread);
  fibers[thread].done = true;
}

// Lets the other fibers run to their next barrier.
void yield() {
  const int thread = linear;
  const dim3 thread_index = threadIdx, block_index = blockIdx;
  swapcontext(&fibers[thread].context, &scheduler);
  linear = thread;
  threadIdx = thread_index;
  blockIdx = block_index;
}

class Monitor {
 public:
  bool enter() { return true; }
  template <class Condition>
  void wait(bool, Condition condition) {
    while (!condition()) yield();
  }
  void notify() {}
};

void run_threads(int count, const std::function<void(int)>& body) {
  fiber_body = &body;
  if (fibers.size() < size_t(count)) fibers.resize(count);
  for (int i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    if (!fiber.stack) fiber.stack.reset(new char[STACK]);  // not touched before it is used
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(enter_fiber), 1, i);
  }
  for (int left = count; left > 0;) {
    for (int i = 0; i < count; ++i) {
      if (fibers[i].done) continue;
      swapcontext(&scheduler, &fibers[i].context);
      left -= fibers[i].done;
    }
  }
}
#endif

// A barrier of all threads that have not exited: as on a GPU, a thread that has exited is not waited for.
class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}

  void wait() {
    auto lock = monitor_.enter();
    const unsigned round = round_;
    ++waiting_;
    if (!release_if_complete()) monitor_.wait(lock, [&] { return round_ != round; });
  }
  void exit() {
    [[maybe_unused]] const auto lock = monitor_.enter();
    --members_;
    release_if_complete();
  }

 private:
  bool release_if_complete() {
    if (waiting_ < members_ || waiting_ == 0) return false;
    waiting_ = 0;
    ++round_;
    monitor_.notify();
    return true;
  }

  Monitor monitor_;
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
  const int count = threads.x * threads.y * threads.z;
  Barrier between(count);
  run_threads(count, [&](int thread) { run_thread(thread, count, between, kernel); });
}

void wait_for_block() { block->all.wait(); }
void wait_for_warp() { block->warps[linear / WARP]->wait(); }
uint64_t& word_of(int lane) { return block->words[linear / WARP * WARP + lane]; }
int lane() { return linear % WARP; }

}  // namespace host_cuda
