// parallel_for of the libraries under a sanitizer: the linker puts it in place of torch's (--wrap in sanitized.py).
//
// torch's threads are OpenMP's, whose barriers ThreadSanitizer does not see: it would report each loop that reads what
// the loop before it wrote. These are std::threads, whose start and join it sees. Nothing else orders two threads of a
// loop, so that two work items that touch the same memory are a data race, whenever they run. The schedule is the worst
// that a caller may get: neighbours are in different threads, the last items are first, and `grain` is ignored.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace {

constexpr int64_t THREADS = 3, CHUNKS = 4 * THREADS;

}  // namespace

extern "C" AOTITorchError __wrap_torch_get_num_threads(uint32_t* threads) {
  *threads = THREADS;
  return AOTI_TORCH_SUCCESS;
}

extern "C" AOTITorchError __wrap_torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc function,
                                                    void* context) {
  const int64_t size = end - begin, chunks = std::min(size, CHUNKS);
  std::atomic<bool> failed = false;
  std::vector<std::thread> threads;
  for (int64_t thread = 0; thread < std::min(chunks, THREADS); ++thread)
    threads.emplace_back([=, &failed] {
      try {
        for (int64_t chunk = chunks - 1 - thread; chunk >= 0; chunk -= THREADS)
          function(begin + size * chunk / chunks, begin + size * (chunk + 1) / chunks, context);
      } catch (...) {
        failed.store(true, std::memory_order_relaxed);
      }
    });
  for (std::thread& thread : threads) thread.join();
  return failed ? AOTI_TORCH_FAILURE : AOTI_TORCH_SUCCESS;
}
