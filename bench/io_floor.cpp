// The floor of a streaming merge: the same bytes read and written, nothing computed. Built by
// bench/io_floor.py.
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kPage = 4096;

int64_t aligned(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

bool read_all(int file, char* to, int64_t at, int64_t bytes) {
  while (bytes > 0) {
    const ssize_t got = pread(file, to, bytes, at);
    if (got < 0) return false;
    if (got == 0 || got % kPage) return true;  // the end of the file
    to += got, at += got, bytes -= got;
  }
  return true;
}

bool write_all(int file, const char* from, int64_t at, int64_t bytes) {
  while (bytes > 0) {
    const ssize_t put = pwrite(file, from, bytes, at);
    if (put < 0) return false;
    from += put, at += put, bytes -= put;
  }
  return true;
}

}  // namespace

// Workers take `request` bytes of every input in turn and write as many. Returns 0 or an errno.
extern "C" int io_floor(const char* const* inputs, int count, const char* output, int64_t bytes,
                        int64_t request, int threads) {
  std::vector<int> files;
  for (int k = 0; k < count; ++k) files.push_back(open(inputs[k], O_RDONLY | O_DIRECT));
  const int out = open(output, O_CREAT | O_TRUNC | O_WRONLY | O_DIRECT, 0644);
  files.push_back(out);
  std::atomic<int> failed{0};
  std::atomic<int64_t> next{0};
  for (int file : files)
    if (file < 0) failed = errno;
  if (!failed && fallocate(out, 0, 0, aligned(bytes))) failed = errno;
  auto work = [&] {
    void* memory =
        mmap(nullptr, request, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) failed = errno;
    madvise(memory, request, MADV_HUGEPAGE);  // advice: without it, only slower
    char* buffer = static_cast<char*>(memory);
    for (int64_t at; !failed && (at = next.fetch_add(request)) < bytes;) {
      const int64_t size = std::min(request, aligned(bytes - at));
      for (int k = 0; k < count; ++k)
        if (!read_all(files[k], buffer, at, size)) failed = errno;
      if (!write_all(out, buffer, at, size)) failed = errno;
    }
    if (memory != MAP_FAILED) munmap(memory, request);
  };
  std::vector<std::thread> workers;
  for (int n = 0; !failed && n < threads; ++n) workers.emplace_back(work);
  for (std::thread& worker : workers) worker.join();
  if (!failed && (ftruncate(out, bytes) || fsync(out))) failed = errno;
  for (int file : files)
    if (file >= 0) close(file);
  return failed;
}
