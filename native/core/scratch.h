// Working memory of an operator.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace headrace {

// Memory of the calling thread that only grows, aligned to 64 bytes; good until the thread's next call. An operator waits
// for its job, so that the job may point into it.
inline char* scratch(int64_t bytes) {
    struct Free {
        void operator()(char* p) const { ::operator delete[](p, std::align_val_t(64)); }
    };
    thread_local std::unique_ptr<char, Free> memory;
    thread_local int64_t size = 0;
    if (bytes > size) {
        memory.reset();
        size = 0;
        memory.reset(static_cast<char*>(::operator new[](size_t(bytes), std::align_val_t(64))));
        size = bytes;
    }
    return memory.get();
}

// Pieces of the calling thread's scratch; the pool's threads work in them while that one waits.
class Parts {
  public:
    explicit Parts(int64_t bytes) : next_(scratch(bytes)) {}

    template <class T = char>
    T* take(int64_t n) {
        T* p = reinterpret_cast<T*>(next_);
        next_ += (n * int64_t(sizeof(T)) + 63) / 64 * 64;
        return p;
    }

  private:
    char* next_;
};

}  // namespace headrace
