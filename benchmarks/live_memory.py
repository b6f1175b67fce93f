"""How many bytes of tensors a process holds on the CPU, and held at most: torch counts GPUs alone.

What the operating system tells of a process besides counts the pages of its libraries, and pages
that its allocator keeps for later; none of that is a tensor.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from torch.utils import cpp_extension

SOURCE = r"""
#include <atomic>
#include <cstdlib>
#include <new>
#include <c10/core/CPUAllocator.h>

namespace {
constexpr size_t kAlign = 64;  // before every block there are so many bytes that tell its size
std::atomic<int64_t> live{0}, most{0};

void release(void* data) {
  if (data == nullptr) return;
  void* block = static_cast<char*>(data) - kAlign;
  live -= *static_cast<int64_t*>(block);
  std::free(block);
}

struct Counting final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = nullptr;
    if (bytes > 0) {
      void* block = nullptr;
      if (posix_memalign(&block, kAlign, bytes + kAlign) != 0) throw std::bad_alloc();
      *static_cast<int64_t*>(block) = static_cast<int64_t>(bytes);
      const int64_t now = live += bytes;
      int64_t known = most;
      while (known < now && !most.compare_exchange_weak(known, now)) {
      }
      data = static_cast<char*>(block) + kAlign;
    }
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

Counting counting;
}  // namespace

extern "C" void count_memory() { c10::SetCPUAllocator(&counting, 1); }
extern "C" int64_t most_memory() { return most; }
extern "C" int64_t live_memory() { return live; }
extern "C" void reset_memory() { most = live.load(); }
"""


def build(folder: Path) -> Path:
    """Compile the counter, where it is not there already; returns the library."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "live_memory.cpp"
    if not source.exists() or source.read_text() != SOURCE:
        source.write_text(SOURCE)
    cpp_extension.load(
        "live_memory",
        [str(source)],
        build_directory=str(folder),
        is_python_module=False,
        with_cuda=False,
    )
    return folder / "live_memory.so"


class LiveMemory:
    """Counts from now on."""

    def __init__(self, library: Path) -> None:
        self._counter = ctypes.CDLL(str(library))
        self._counter.most_memory.restype = ctypes.c_int64
        self._counter.count_memory()

    @property
    def most(self) -> int:
        """Bytes at the peak."""
        return int(self._counter.most_memory())
